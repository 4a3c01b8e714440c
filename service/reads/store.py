"""Reading: never takes the lock, and shows one moment of the database each time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, LiteralString, TypeVar

from service.domain import Appointment, HistoryEntry
from service.errors import AppointmentNotFound, InvalidFields
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row
from service.reads.moments import Moment
from service.reads.replicas import Replicas

T = TypeVar("T")

# One statement has one snapshot: the rows and the moment belong together.
_WITH_MOMENT: LiteralString = """
    SELECT organization.revision, organization.recorded_at, found.*
    FROM (
        SELECT coalesce(max(o.revision), 0) AS revision, max(o.recorded_at) AS recorded_at
        FROM organizations o
        WHERE o.organization_id = %(organization_id)s
    ) AS organization
    LEFT JOIN LATERAL ({query}) AS found ON true
    ORDER BY {order}
"""

# By the order of the primary key: an equality looks as cheap along another index.
_GET: LiteralString = f"""
    SELECT {rows.APPOINTMENT}
    FROM appointments
    WHERE organization_id = %(organization_id)s AND appointment_id BETWEEN %(id)s AND %(id)s
    ORDER BY appointment_id
"""

_GET_AS_OF: LiteralString = f"""
    SELECT {rows.APPOINTMENT}
    FROM appointment_history
    WHERE organization_id = %(organization_id)s AND appointment_id = %(id)s
        AND revision <= %(as_of)s
    ORDER BY revision DESC
    LIMIT 1
"""

# The state of every appointment right after a revision.
_ALL_AS_OF: LiteralString = f"""
    SELECT DISTINCT ON (appointment_id) {rows.APPOINTMENT}
    FROM appointment_history
    WHERE organization_id = %(organization_id)s AND revision <= %(as_of)s
    ORDER BY appointment_id, revision DESC
"""

_BY_START: LiteralString = "start_time, appointment_id"

_ENTRIES: LiteralString = f"""
    SELECT {rows.HISTORY_ENTRY}
    FROM appointment_history
    WHERE organization_id = %(organization_id)s AND revision > %(after)s {{only}}
    ORDER BY revision
    LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Rows of one moment of their organization."""

    items: Sequence[T]
    moment: Moment

    @property
    def revision(self) -> int:
        return self.moment[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which appointments a list shows: those that intersect `[start, end)`.

    If both are one time, those that run then.
    """

    resource_id: str | None
    start: datetime | None
    end: datetime | None
    include_cancelled: bool


class ReadStore:
    """Reads from the primary, or from a replica where the caller allows an older state.

    Everywhere `min_revision` is None for a fresh read; a number allows a replica that
    has that revision of the organization, and the one that the read is about. `as_of`
    is a revision to read the past at. One beyond the organization's latest raises
    InvalidFields.
    """

    def __init__(self, primary: Database, replicas: Replicas | None) -> None:
        self._primary = primary
        self._replicas = replicas

    async def revision_at(self, organization_id: str, time: datetime) -> int:
        """Return the latest revision that was recorded at or before a time, 0 for none."""
        found = await self._primary.fetch(
            "SELECT revision_at(%(id)s, %(time)s)",
            {"id": organization_id, "time": time},
        )
        revision: int = found[0][0]
        return revision

    async def get(
        self, organization_id: str, id: str, *, as_of: int | None, min_revision: int | None
    ) -> tuple[Appointment, int]:
        """Return an appointment and the organization's revision.

        Raises AppointmentNotFound.
        """
        page = await self._read(
            _GET if as_of is None else _GET_AS_OF,
            "1",
            {"organization_id": organization_id, "id": id, "as_of": as_of},
            min_revision=min_revision,
        )
        if not page.items:
            raise AppointmentNotFound(
                "the organization has no appointment with this id"
                if as_of is None
                else f"the organization had no appointment with this id then (revision {as_of})",
                organization_revision=page.revision,
            )
        return rows.appointment(organization_id, page.items[0]), page.revision

    async def list(
        self,
        organization_id: str,
        window: Window,
        *,
        after: tuple[datetime, str] | None,
        limit: int,
        as_of: int | None,
        min_revision: int | None,
    ) -> Page[Appointment]:
        """Return appointments by start, then id, beyond the start and id of `after`."""
        page = await self._read(
            _list_query(window, after=after is not None, as_of=as_of is not None),
            _BY_START,
            {
                "organization_id": organization_id,
                "resource_id": window.resource_id,
                "window_start": window.start,
                "window_end": window.end,
                "after_start": after[0] if after else None,
                "after_id": after[1] if after else None,
                "as_of": as_of,
                "limit": limit,
            },
            min_revision=min_revision,
        )
        return Page(
            items=[rows.appointment(organization_id, row) for row in page.items],
            moment=page.moment,
        )

    async def history(
        self,
        organization_id: str,
        id: str | None,
        *,
        after: int,
        limit: int,
        min_revision: int | None,
    ) -> Page[HistoryEntry]:
        """Return the changes after a revision: of one appointment, or of all for no id.

        Raises AppointmentNotFound for an id without history.
        """
        page = await self._read(
            _ENTRIES.format(only="" if id is None else "AND appointment_id = %(id)s"),
            "found.revision",
            {"organization_id": organization_id, "id": id, "after": after, "limit": limit},
            min_revision=min_revision,
        )
        if id is not None and after == 0 and not page.items:
            raise AppointmentNotFound(
                "the organization never had an appointment with this id",
                organization_revision=page.revision,
            )
        return Page(
            items=[rows.history_entry(organization_id, row) for row in page.items],
            moment=page.moment,
        )

    async def _read(
        self,
        query: LiteralString,
        order: LiteralString,
        parameters: Mapping[str, Any],
        *,
        min_revision: int | None,
    ) -> Page[Row]:
        statement = _WITH_MOMENT.format(query=query, order=order)
        as_of = parameters.get("as_of")
        if self._replicas is not None and min_revision is not None:
            # One without the revision to go on after would say that nothing comes after it.
            needed = max(min_revision, as_of or 0, parameters.get("after", 0))
            found = await self._replicas.fetch(statement, parameters, revision=needed)
            if found is not None:
                return _page(found)
        page = _page(await self._primary.fetch(statement, parameters))
        for field, revision in (("min_revision", min_revision), ("as_of_revision", as_of)):
            if revision is not None and revision > page.revision:
                raise InvalidFields.beyond_latest(field, page.revision)
        return page


def _list_query(window: Window, *, after: bool, as_of: bool) -> LiteralString:
    """Build the query of a list.

    Of the current state, what starts inside the window comes from an index in order;
    what started before it and reaches in is found as ranges that contain its start,
    through the GiST indexes, of which active and cancelled ranges have one each.
    """
    active: LiteralString = "state = 'ACTIVE'"
    same: list[LiteralString] = []
    if window.resource_id is not None:
        same.append("resource_id = %(resource_id)s")
    beyond: list[LiteralString] = []
    if after:
        beyond.append("(start_time, appointment_id) > (%(after_start)s, %(after_id)s)")
    before_end: list[LiteralString] = []
    if window.end is not None:
        point = window.start == window.end
        before_end.append(f"start_time {'<=' if point else '<'} %(window_end)s")
    if as_of:
        conditions = [*same, *beyond, *before_end]
        if not window.include_cancelled:
            conditions.append(active)
        if window.start is not None:
            conditions.append("end_time > %(window_start)s")
        return _part(f"({_ALL_AS_OF}) AS past", conditions, columns="*")

    same.append("organization_id = %(organization_id)s")
    starting = [*same, *beyond, *before_end]
    if not window.include_cancelled:
        starting.append(active)
    if window.start is None:
        return _part("appointments", starting)
    parts = [_part("appointments", [*starting, "start_time >= %(window_start)s"])]
    for state in (active, *(["state = 'CANCELLED'"] if window.include_cancelled else [])):
        running = _where(
            [*same, state, "tstzrange(start_time, end_time) @> %(window_start)s::timestamptz"]
        )
        # Few run at one moment. OFFSET 0 keeps the other conditions and the order out of
        # there: with them an index by start looks cheap, and reads all that ever started.
        fenced: LiteralString = f"(SELECT * FROM appointments {running} OFFSET 0) AS running"
        parts.append(_part(fenced, [*beyond, "start_time < %(window_start)s"]))
    union: LiteralString = " UNION ALL ".join(f"({part})" for part in parts)
    return f"SELECT * FROM ({union}) AS parts ORDER BY {_BY_START} LIMIT %(limit)s"


def _part(
    source: LiteralString,
    conditions: Sequence[LiteralString],
    *,
    columns: LiteralString = rows.APPOINTMENT,
) -> LiteralString:
    where = _where(conditions)
    return f"SELECT {columns} FROM {source} {where} ORDER BY {_BY_START} LIMIT %(limit)s"


def _where(conditions: Sequence[LiteralString]) -> LiteralString:
    every: LiteralString = " AND ".join(conditions)
    return f"WHERE {every}" if conditions else ""


def _page(found: list[Row]) -> Page[Row]:
    """Split the moment off; without a match there is one row that has only that."""
    items = [row[2:] for row in found if row[2] is not None]
    return Page(items=items, moment=found[0][:2])
