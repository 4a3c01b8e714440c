"""Watches organizations by polling: one query returns the revisions of all that are watched.

NOTIFY is not used: it takes a server-wide lock at every commit, and notifications are lost
when a connection is.
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

# Limits of a message. A slow watcher occupies about three times the size of one message: the
# object, its bytes, and what gRPC has not sent yet.
MAX_ENTRIES = 128
MAX_MESSAGE_BYTES = 64 * 1024
# Entries that are read for the first message. Each next message reads twice as many as the
# last one contained, so that few large entries are read and then do not fit.
FIRST_ENTRIES = 8
# Concurrent reads of all watchers. Other reads use the other connections.
MAX_CONCURRENT_READS = 2


@dataclass(frozen=True, slots=True)
class Changes:
    """A message for a watcher, and the organization's revision when it was read."""

    response: rpc.WatchAppointmentsResponse
    organization_revision: int


class Watch:
    """Sends changes to watchers, each from its own revision on.

    One query per poll `interval` serves all watchers; without watchers there is none. While
    the database is unavailable, watchers wait for up to `outage_timeout`. Both in seconds.
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
    ) -> None:
        self._database = database
        self._reads = reads
        self._entries = metrics.watched_entries
        self._interval = interval
        self._outage_timeout = outage_timeout
        self._max_watchers = max_watchers
        self._watchers = 0
        metrics.watchers.set_function(lambda: self._watchers)
        self._organizations: dict[str, _Organization] = {}
        self._polling: asyncio.Task[None] | None = None
        self._backoff = Backoff("watch organizations", metrics.unexpected_errors)
        self._pause = interval
        self._reading: dict[tuple[str, int], asyncio.Task[Changes]] = {}
        self._read_slots = asyncio.Semaphore(MAX_CONCURRENT_READS)

    async def changes(self, organization_id: str, *, after: int) -> AsyncGenerator[Changes, None]:
        """Yield every change after a revision in order, without end.

        The first message comes at once, without entries if there are none yet. Raises
        Overloaded, InvalidFields for a revision beyond the latest, DatabaseUnavailable.
        """
        with self._watching(organization_id) as organization:
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
                await organization.wait_beyond(after)
                changes = await self._read_with_retries(
                    organization_id,
                    after,
                    min(max(2 * count, FIRST_ENTRIES), MAX_ENTRIES),
                    min_revision=organization.revision,
                )

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
        last_response = monotonic()
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
                    self._update(organization_id, before, revisions.get(organization_id, 0))
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

    def _update(self, organization_id: str, before: int, revision: int) -> None:
        """Update an organization's revision. `before` is the one known before the query."""
        if organization_id not in self._organizations:
            return
        if revision >= before:
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
        self, organization_id: str, after: int, limit: int, *, min_revision: int
    ) -> Changes:
        deadline = monotonic() + self._outage_timeout
        while True:
            try:
                return await self._read_shared(organization_id, after, limit, min_revision)
            except (DatabaseUnavailable, Overloaded) as error:
                if monotonic() >= deadline:
                    raise self._unavailable(error) from error
            await asyncio.sleep(self._interval)

    async def _read_shared(
        self, organization_id: str, after: int, limit: int, min_revision: int
    ) -> Changes:
        """Read the changes after a revision once for all watchers that wait for them.

        A read in flight can be shared, whatever its limit, because it began after the
        organization had advanced.
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
                    task.exception()  # retrieved, even if all watchers have gone

            reading.add_done_callback(forget)
        return await asyncio.shield(reading)

    async def _read(
        self, organization_id: str, after: int, limit: int, *, min_revision: int | None
    ) -> Changes:
        async with self._read_slots:
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
