"""Watches organizations by polling: one query returns the revisions of all that are watched.

NOTIFY is not used: a notification may be lost, so a poll is needed too, which one query is for all.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from runtime.backoff import Backoff
from runtime.turns import result_of
from service import messages
from service.domain import ALL_CHANGES, ChangeFilter, HistoryEntry
from service.errors import DatabaseUnavailable, EpochEnded, InvalidFields, Overloaded
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.store import ReadStore

# Limits of a message. A slow watcher occupies about three times the size of one message: the
# object, its bytes, and what gRPC has not sent yet.
MAX_ENTRIES = 128
MAX_MESSAGE_BYTES = 64 * 1024
# Entries that are read for the first message. Each next message reads twice as many as the
# last one contained, so that few large entries are read and then do not fit.
FIRST_ENTRIES = 8
# A watcher that is further behind reads with its own filter. A busy organization makes some hundred
# changes between two polls, which its watchers should share.
FAR_BEHIND = 8 * MAX_ENTRIES
# Concurrent reads of all watchers. Other reads use the other connections.
MAX_CONCURRENT_READS = 2
# Seconds. While a filter leaves changes out, its watcher gets the revision reached this often.
PROGRESS_INTERVAL = 5.0


@dataclass(frozen=True, slots=True)
class Changes:
    """A message for a watcher, and the organization's revision when it was read."""

    response: rpc.WatchAppointmentsResponse
    organization_revision: int


@dataclass(frozen=True, slots=True)
class _Read:
    """A message with what was read for it, which filters are applied to."""

    changes: Changes
    items: Sequence[HistoryEntry] = ()

    def selected_by(self, selected: ChangeFilter) -> Changes:
        if selected.selects_all:
            return self.changes
        response = self.changes.response
        chosen = [
            entry
            for item, entry in zip(self.items, response.entries, strict=True)
            if selected.selects(item)
        ]
        return Changes(
            message(chosen, response.revision, response.epoch), self.changes.organization_revision
        )


def message(
    entries: Sequence[pb.HistoryEntry], revision: int, epoch: str
) -> rpc.WatchAppointmentsResponse:
    return rpc.WatchAppointmentsResponse(entries=entries, revision=revision, epoch=epoch or None)


class Watch:
    """Sends changes to watchers, each from its own revision on.

    One query per poll `interval` serves all watchers; without watchers there is none. While
    the database is unavailable, watchers wait for up to `outage_timeout`. Both in seconds.

    A change that many wait for is read once, whatever their filters select: a filter is applied
    to what was read. Only a watcher that is far behind reads with its filter, which skips many
    changes at once.
    """

    def __init__(
        self,
        database: Database,
        reads: ReadStore,
        metrics: Metrics,
        *,
        interval: float,
        outage_timeout: float,
        max_watchers: int,
        progress_interval: float = PROGRESS_INTERVAL,
    ) -> None:
        self._database = database
        self._reads = reads
        self._entries = metrics.watched_entries
        self._interval = interval
        self._outage_timeout = outage_timeout
        self._max_watchers = max_watchers
        self._progress_interval = progress_interval
        self._watchers = 0
        metrics.watchers.set_function(lambda: self._watchers)
        self._organizations: dict[str, _Organization] = {}
        self._polling: asyncio.Task[None] | None = None
        self._backoff = Backoff("watch organizations", metrics.unexpected_errors)
        self._pause = interval
        self._reading: dict[tuple[str, ChangeFilter, int], asyncio.Task[_Read]] = {}
        self._read_slots = asyncio.Semaphore(MAX_CONCURRENT_READS)

    async def changes(
        self,
        organization_id: str,
        selected: ChangeFilter = ALL_CHANGES,
        *,
        after: int,
        is_of_epoch: Callable[[str], bool] = lambda _: True,
    ) -> AsyncGenerator[Changes, None]:
        """Yield every change after a revision that a filter selects, in order, without end.

        The first message comes at once, without entries if there are none yet. While changes are
        left out, a message without entries comes every `progress_interval`. `is_of_epoch` says
        whether the revision is of an epoch. Raises Overloaded, InvalidFields for a revision beyond
        the latest, EpochEnded for one of another epoch and at the end of an epoch,
        DatabaseUnavailable.
        """
        with self._watching(organization_id) as organization:
            read = await self._read(
                organization_id, selected, after, FIRST_ENTRIES, min_revision=None
            )
            latest, epoch = read.changes.organization_revision, self._reads.epoch
            if not is_of_epoch(epoch):
                raise _epoch_ended(latest)
            if after > latest:
                raise InvalidFields.beyond_latest("after_revision", latest)
            reported, report_at = -1, 0.0
            while True:
                changes, count = read.selected_by(selected), len(read.items)
                del read  # a slow watcher holds only its message
                after, latest = changes.response.revision, changes.organization_revision
                organization.advance(latest)
                if changes.response.entries or monotonic() >= report_at:
                    yield changes
                    self._entries.inc(len(changes.response.entries))
                    reported, report_at = after, monotonic() + self._progress_interval
                try:
                    async with asyncio.timeout(
                        None if reported == after else report_at - monotonic()
                    ):
                        await organization.wait_beyond(after)
                except TimeoutError:
                    read = _Read(Changes(message((), after, epoch), latest))
                    continue
                far_behind = organization.revision - after > FAR_BEHIND
                read = await self._read_with_retries(
                    organization_id,
                    selected if far_behind else ALL_CHANGES,
                    after,
                    min(max(2 * count, FIRST_ENTRIES), MAX_ENTRIES),
                    min_revision=organization.revision,
                )
                if self._reads.epoch != epoch:
                    raise _epoch_ended(read.changes.organization_revision)

    @contextmanager
    def _watching(self, organization_id: str) -> Iterator["_Organization"]:
        """Count a watcher, and poll while there is any. Raises Overloaded."""
        if self._watchers >= self._max_watchers:
            raise Overloaded(f"{self._watchers} watch already; try another time")
        organization = self._organizations.setdefault(organization_id, _Organization())
        organization.watchers += 1
        self._watchers += 1
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        try:
            yield organization
        finally:
            self._watchers -= 1
            organization.watchers -= 1
            if (
                not organization.watchers
                and self._organizations.get(organization_id) is organization
            ):
                del self._organizations[organization_id]

    async def _poll(self) -> None:
        """Poll the revisions of the watched organizations until none is watched."""
        last_response, epoch = monotonic(), self._database.epoch
        while self._organizations:
            await asyncio.sleep(self._pause)
            self._pause = self._interval
            try:
                known = {name: watched.revision for name, watched in self._organizations.items()}
                found = await self._database.fetch_across(
                    "SELECT organization_id, revision FROM organization_moments(%s::text[])",
                    (list(known),),
                )
                revisions: dict[str, int] = dict(found)
                has_ended, epoch = self._database.epoch != epoch, self._database.epoch
                for organization_id, before in known.items():
                    revision = revisions.get(organization_id, 0)
                    self._update(organization_id, before, revision, has_ended=has_ended)
            except (DatabaseUnavailable, Overloaded) as error:
                if monotonic() - last_response < self._outage_timeout:
                    continue
                self._fail_all(self._unavailable(error))
            except Exception as error:  # noqa: BLE001  # raised to every watcher
                self._fail_all(error)
                # The delay also holds for watchers that call again at once.
                self._pause = self._backoff.failed(error)
            else:
                self._backoff.succeeded()
            last_response = monotonic()
        self._polling = None

    def _update(self, organization_id: str, before: int, revision: int, *, has_ended: bool) -> None:
        """Update an organization's revision. `before` is the one known before the query.

        `has_ended` is whether the epoch ended since.
        """
        if organization_id not in self._organizations:
            return
        if has_ended:
            self._organizations.pop(organization_id).fail(_epoch_ended(revision))
        elif revision >= before:
            self._organizations[organization_id].advance(revision)
        else:
            # A backup was restored, or a standby without the latest writes was promoted.
            error = InvalidFields.beyond_latest("after_revision", revision)
            self._organizations.pop(organization_id).fail(error)

    def _fail_all(self, error: Exception) -> None:
        for organization in self._organizations.values():
            organization.fail(error)
        # New watchers must not fail with an old error.
        self._organizations.clear()

    def _unavailable(self, error: Exception) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"the database has not responded for {self._outage_timeout:g} s ({error}); watch"
            " again after the last revision seen"
        )

    async def _read_with_retries(
        self,
        organization_id: str,
        selected: ChangeFilter,
        after: int,
        limit: int,
        *,
        min_revision: int,
    ) -> _Read:
        deadline = monotonic() + self._outage_timeout
        while True:
            try:
                return await self._read_shared(
                    organization_id, selected, after, limit, min_revision
                )
            except (DatabaseUnavailable, Overloaded) as error:
                if monotonic() >= deadline:
                    raise self._unavailable(error) from error
            await asyncio.sleep(self._interval)

    async def _read_shared(
        self,
        organization_id: str,
        selected: ChangeFilter,
        after: int,
        limit: int,
        min_revision: int,
    ) -> _Read:
        """Read the changes after a revision once for all watchers that wait for them.

        A read in flight can be shared, whatever its limit, because it began after the
        organization had advanced.
        """
        key = organization_id, selected, after
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(
                self._read(organization_id, selected, after, limit, min_revision=min_revision)
            )
            self._reading[key] = reading

            def forget(task: asyncio.Task[_Read]) -> None:
                del self._reading[key]
                if not task.cancelled():
                    task.exception()  # retrieved, even if all watchers have gone

            reading.add_done_callback(forget)
        return await result_of(reading)

    async def _read(
        self,
        organization_id: str,
        selected: ChangeFilter,
        after: int,
        limit: int,
        *,
        min_revision: int | None,
    ) -> _Read:
        """Read the changes after a revision, up to `min_revision` if given.

        A replica may have changes that the primary does not show yet, since they are not on a
        synchronous standby. A failover could take them away.
        """
        async with self._read_slots:
            page = await self._reads.changes(
                organization_id, selected, after=after, limit=limit, min_revision=min_revision
            )
        latest = page.revision if min_revision is None else min(page.revision, min_revision)
        items = [item for item in page.items if item.revision <= latest]
        entries = messages.fitting(
            items,
            limit,
            messages.history_entry,
            size_of=pb.HistoryEntry.ByteSize,
            max_bytes=MAX_MESSAGE_BYTES,
        )
        whole = len(entries) == len(items)
        response = message(
            entries,
            min(page.reached, latest) if whole else entries[-1].revision,
            self._reads.epoch,
        )
        return _Read(Changes(response, latest), items[: len(entries)])


def _epoch_ended(revision: int) -> EpochEnded:
    return EpochEnded.of("after_revision", organization_revision=revision)


class _Organization:
    """A watched organization and its latest known revision."""

    def __init__(self) -> None:
        self.watchers = 0
        self.revision = 0
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def advance(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def fail(self, error: Exception) -> None:
        """Raise an error to all watchers that wait."""
        self._failure = error
        self._wake()

    async def wait_beyond(self, revision: int) -> None:
        """Wait for a later revision. Raises the error passed to `fail`."""
        while self.revision <= revision:
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
