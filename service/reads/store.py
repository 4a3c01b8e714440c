"""Reads of appointments and history. A read takes no lock and uses a single snapshot."""

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

# One statement has one snapshot, so the rows are consistent with the revision.
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

# BETWEEN and ORDER BY select the primary key; for an equality, the planner estimates the same
# cost for another index.
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
    """Rows, and the state of their organization that they belong to."""

    items: Sequence[T]
    moment: Moment

    @property
    def revision(self) -> int:
        return self.moment[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The filter of a list: appointments that intersect `[start, end)`.

    If start and end are equal, appointments that run at that time.
    """

    resource_id: str | None
    start: datetime | None
    end: datetime | None
    include_cancelled: bool


class ReadStore:
    """Reads from the primary, or from a replica if the caller allows an older state.

    `min_revision` None reads the latest state, from the primary. A number allows a replica
    that has this revision of the organization, and the revision that the read is about.
    `as_of` is the revision of a past state. Both raise InvalidFields if they are beyond the
    organization's latest revision.
    """

    def __init__(self, primary: Database, replicas: Replicas | None) -> None:
        self._primary = primary
        self._replicas = replicas

    async def revision_at(self, organization_id: str, time: datetime) -> int:
        """Return the latest revision recorded at or before a time, or 0."""
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
        """Return appointments by start and id, following the start and id in `after`."""
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
        """Return the changes after a revision of one appointment, or of all if `id` is None.

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
            # A replica without the revision `after` would return no changes, as if there
            # were none.
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

    In the current state, appointments that start inside the window are read in order from a
    B-tree index. Appointments that started before are found as ranges that contain the
    start of the window, with one GiST index each for active and cancelled appointments.
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
        # Few appointments run at a time. OFFSET 0 keeps the other conditions and the order
        # out of the subquery: with them the planner prefers an index by start, which reads
        # everything that ever started.
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
    """Split off the moment. Without a match, there is one row with nothing else."""
    items = [row[2:] for row in found if row[2] is not None]
    return Page(items=items, moment=found[0][:2])
