"""Reads the current state of appointments by id in batches.

A state is read after the call of `CurrentAppointments.get`, so it includes every write that was
completed before.
"""

from collections.abc import Sequence
from typing import LiteralString, NamedTuple

from runtime.tracing import current_span
from service.batcher import Batcher
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row

# Bounds the time of a statement. More did not make a call cheaper.
MOST = 64

_STATEMENT: LiteralString = f"""
    SELECT place, organization_revision, clock, {rows.APPOINTMENT_OF_ROW}
    FROM current_appointments(%s::text[], %s::text[])
"""


class Current(NamedTuple):
    """The state of an appointment as a raw row, None if it does not exist.

    `revision` is that of its organization, and `clock` the time of the state, raw.
    """

    revision: int
    clock: int
    row: Row | None


class CurrentAppointments:
    """Reads appointments. As many callers may wait as statements may wait for a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batcher = Batcher(
            self._fetch, most=MOST, gather=True, max_waiting=database.max_waiting
        )

    async def get(self, organization_id: str, id: str) -> Current:
        """Return the current state of an appointment.

        Raises Overloaded, DatabaseUnavailable.
        """
        span = current_span.get()
        if span is None:
            return await self._batcher.submit((organization_id, id))
        # The statement is for several, and may wait for the one before: each has a span of its own.
        with span.child("SQL", kind="client", database="postgresql", statement=_STATEMENT):
            return await self._batcher.submit((organization_id, id))

    async def _fetch(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Current]:
        organization_ids, ids = zip(*wanted, strict=True)
        found = await self._database.fetch_across(
            _STATEMENT, (list(organization_ids), list(ids)), raw=True
        )
        states = {
            row[0]: Current(row[1], row[2], row[3:] if row[3] is not None else None)
            for row in found
        }
        return [states[place] for place in range(1, len(wanted) + 1)]
