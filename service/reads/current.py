"""Reads of the current state that share statements: appointments by id, and lists.

What is read is the state after the call, so it includes every write that was completed before.
"""

from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import LiteralString, NamedTuple

from service.batcher import Batcher
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row

# Bounds the time of a statement. More did not make a call cheaper.
MOST = 64
MOST_LISTS = 32
# Appointments of a list that shares a statement: a page of the default size, and one more.
MOST_LISTED = 101
# Seconds for which lists of an organization and resource are read alone, after one that took long.
ALONE = 10.0

# Arrays are sent in binary (%b), which takes a sixth of the time.
_GET: LiteralString = f"""
    SELECT place, organization_revision, clock, {rows.APPOINTMENT_OF_ROW}
    FROM current_appointments(%b::text[], %b::text[])
"""
_LIST: LiteralString = f"""
    SELECT organization_revision, recorded_at, clock, {rows.APPOINTMENT_OF_ROW}, place
    FROM listed_appointments(
        %b::text[], %b::text[], %b::timestamptz[], %b::timestamptz[], %b::integer[]
    )
"""


class Current(NamedTuple):
    """The state of an appointment as a raw row, None if it does not exist.

    `revision` is that of its organization, and `clock` the time of the state, raw.
    """

    revision: int
    clock: int
    row: Row | None


class Listing(NamedTuple):
    """A list: what occupies `[start, end)` in an organization, or in one resource of it."""

    organization_id: str
    resource_id: str | None
    start: datetime
    end: datetime
    limit: int

    @property
    def place(self) -> tuple[str, str | None]:
        return self.organization_id, self.resource_id


class CurrentAppointments:
    """Reads appointments. As many callers may wait as statements may wait for a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gets = Batcher(self._get, most=MOST, gather=True, max_waiting=database.max_waiting)
        self._lists = Batcher(
            self._list, most=MOST_LISTS, gather=True, max_waiting=database.max_waiting
        )
        # Until when lists are read alone, by organization and resource.
        self._alone: dict[tuple[str, str | None], float] = {}

    async def get(self, organization_id: str, id: str) -> Current:
        """Return the current state of an appointment.

        Raises Overloaded, DatabaseUnavailable.
        """
        return await self._gets.submit_sql((organization_id, id), _GET)

    async def list(self, wanted: Listing) -> Sequence[Row] | None:
        """Return a list as raw rows, at least one: of the moment, and of an appointment or None.

        Returns None for a list that is to be read alone, since it would delay others.
        Raises Overloaded, DatabaseUnavailable.
        """
        if self._alone and self._alone.get(wanted.place, 0.0) > monotonic():
            return None
        return await self._lists.submit_sql(wanted, _LIST)

    async def _get(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Current]:
        organization_ids, ids = zip(*wanted, strict=True)
        found = await self._database.fetch_across(
            _GET, (list(organization_ids), list(ids)), raw=True
        )
        states = {
            row[0]: Current(row[1], row[2], row[3:] if row[3] is not None else None)
            for row in found
        }
        return [states[place] for place in range(1, len(wanted) + 1)]

    async def _list(self, wanted: Sequence[Listing]) -> Sequence[Sequence[Row] | None]:
        found = await self._database.fetch_across(
            _LIST, [list(values) for values in zip(*wanted, strict=True)], raw=True
        )
        lists: list[list[Row]] = [[] for _ in wanted]
        for row in found:
            lists[row[-1] - 1].append(row)
        answers = [None if _took_long(its) else its for its in lists]
        took_long = {
            one.place for one, answer in zip(wanted, answers, strict=True) if answer is None
        }
        if took_long:
            now = monotonic()
            self._alone = {place: until for place, until in self._alone.items() if until > now}
            self._alone |= dict.fromkeys(took_long, now + ALONE)
        return answers


def _took_long(its_rows: Sequence[Row]) -> bool:
    """Return whether a row of a list has no revision."""
    return any(row[0] is None for row in its_rows)
