"""Watching organizations: one question every moment tells which of them have advanced.

The database is asked: a notification would take a lock of the whole server at every
commit, and is lost with its connection.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from appointments.v1 import appointment_service_pb2 as rpc

from runtime.backoff import Backoff
from service import messages
from service.errors import DatabaseUnavailable, InvalidFields, Overloaded
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.store import ReadStore

# A watcher that reads slowly holds one message, some three times over: as an object, as
# bytes, and in what gRPC has not sent yet.
MAX_ENTRIES = 128
MAX_MESSAGE_BYTES = 64 * 1024
# Read for a first message; then twice as many as the last message held, so that a page of
# large entries is not read for the few of them that fit.
FIRST_ENTRIES = 8
# Pages that watchers read at the same time: the other connections are for other reads.
READS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Changes:
    """A message for a watcher, and the organization's revision when it was read."""

    response: rpc.WatchAppointmentsResponse
    organization_revision: int


class Watch:
    """Shows any number of watchers what changes, each from a revision of its own.

    Every `interval` the database is asked once for all organizations that are watched, and
    not at all if none is. While it is away watchers wait, for `patience` at most. Both are
    in seconds.
    """

    def __init__(
        self,
        database: Database,
        reads: ReadStore,
        metrics: Metrics,
        *,
        interval: float,
        patience: float,
        max_watchers: int,
    ) -> None:
        self._database = database
        self._reads = reads
        self._entries = metrics.watched_entries
        self._interval = interval
        self._patience = patience
        self._max_watchers = max_watchers
        self._watchers = 0
        metrics.watchers.set_function(lambda: self._watchers)
        self._organizations: dict[str, _Organization] = {}
        self._polling: asyncio.Task[None] | None = None
        self._backoff = Backoff("watch organizations", metrics.unexpected_errors)
        self._pause = interval
        self._reading: dict[tuple[str, int], asyncio.Task[Changes]] = {}
        self._turns = asyncio.Semaphore(READS_AT_ONCE)

    async def changes(self, organization_id: str, *, after: int) -> AsyncGenerator[Changes, None]:
        """Give every change after a revision in order, without end.

        The first comes at once, without entries if there are none yet. Raises Overloaded,
        InvalidFields for a revision beyond the latest, DatabaseUnavailable.
        """
        with self._place(organization_id) as organization:
            changes = await self._read(organization_id, after, FIRST_ENTRIES, min_revision=None)
            latest = changes.organization_revision
            if after > latest:
                raise InvalidFields.beyond_latest("after_revision", latest)
            while True:
                organization.advance(changes.organization_revision)
                after = changes.response.revision
                yield changes
                count = len(changes.response.entries)
                self._entries.inc(count)
                await organization.beyond(after)
                changes = await self._read_patiently(
                    organization_id,
                    after,
                    min(max(2 * count, FIRST_ENTRIES), MAX_ENTRIES),
                    min_revision=organization.revision,
                )

    @contextmanager
    def _place(self, organization_id: str) -> Iterator["_Organization"]:
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
        """Note which organizations have advanced, as long as any is watched."""
        answered = monotonic()
        while self._organizations:
            await asyncio.sleep(self._pause)
            self._pause = self._interval
            try:
                known = {name: watched.revision for name, watched in self._organizations.items()}
                found = await self._database.fetch(
                    "SELECT organization_id, revision FROM organizations"
                    " WHERE organization_id = ANY (%s)",
                    (list(known),),
                )
                revisions: dict[str, int] = dict(found)
                for organization_id, before in known.items():
                    self._note(organization_id, before, revisions.get(organization_id, 0))
            except (DatabaseUnavailable, Overloaded) as error:
                if monotonic() - answered < self._patience:
                    continue
                self._give_up(self._away(error))
            except Exception as error:  # noqa: BLE001  # each watcher is to learn of it
                self._give_up(error)
                # Those that come again at once wait as well.
                self._pause = self._backoff.failed(error)
            else:
                self._backoff.succeeded()
            answered = monotonic()
        self._polling = None

    def _note(self, organization_id: str, before: int, revision: int) -> None:
        """Note an organization's revision, and what it was known to be before it was asked."""
        if organization_id not in self._organizations:
            return
        if revision >= before:
            self._organizations[organization_id].advance(revision)
        else:
            # Restored, or a standby that lacks the latest writes took over.
            error = InvalidFields.beyond_latest("after_revision", revision)
            self._organizations.pop(organization_id).fail(error)

    def _give_up(self, error: Exception) -> None:
        for organization in self._organizations.values():
            organization.fail(error)
        # Whoever comes from now on waits for news of its own.
        self._organizations.clear()

    def _away(self, error: Exception) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"the database has not answered for {self._patience:g} s ({error}); watch again"
            " after the last revision seen"
        )

    async def _read_patiently(
        self, organization_id: str, after: int, limit: int, *, min_revision: int
    ) -> Changes:
        give_up = monotonic() + self._patience
        while True:
            try:
                return await self._read_once_for_all(organization_id, after, limit, min_revision)
            except (DatabaseUnavailable, Overloaded) as error:
                if monotonic() >= give_up:
                    raise self._away(error) from error
            await asyncio.sleep(self._interval)

    async def _read_once_for_all(
        self, organization_id: str, after: int, limit: int, min_revision: int
    ) -> Changes:
        """Read what comes after a revision once for all that wait for it now.

        A read under way will do, whatever its limit: it began when the organization had
        advanced already.
        """
        key = organization_id, after
        reading = self._reading.get(key)
        if reading is None:
            reading = asyncio.create_task(
                self._read(organization_id, after, limit, min_revision=min_revision)
            )
            self._reading[key] = reading

            def forget(task: asyncio.Task[Changes]) -> None:
                del self._reading[key]
                if not task.cancelled():
                    task.exception()  # seen, even if nobody waits for it any more

            reading.add_done_callback(forget)
        return await asyncio.shield(reading)

    async def _read(
        self, organization_id: str, after: int, limit: int, *, min_revision: int | None
    ) -> Changes:
        async with self._turns:
            page = await self._reads.history(
                organization_id,
                None,
                after=after,
                limit=limit,
                min_revision=min_revision,
            )
        entries = messages.fitting(
            page.items, limit, messages.history_entry, max_bytes=MAX_MESSAGE_BYTES
        )
        if min_revision is not None or entries:
            after = entries[-1].revision
        return Changes(
            rpc.WatchAppointmentsResponse(entries=entries, revision=after), page.revision
        )


class _Organization:
    """An organization that is watched, and the latest revision of it that is known."""

    def __init__(self) -> None:
        self.watchers = 0
        self.revision = 0
        self._failure: Exception | None = None
        self._news = asyncio.Event()

    def advance(self, revision: int) -> None:
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def fail(self, error: Exception) -> None:
        """Let all that wait fail with this error."""
        self._failure = error
        self._wake()

    async def beyond(self, revision: int) -> None:
        """Wait for a later revision. Raises what the watch failed with."""
        while self.revision <= revision:
            if self._failure is not None:
                raise self._failure
            await self._news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
