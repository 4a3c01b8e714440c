"""Reads of appointments and history. A read takes no lock and uses a single snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Generic, LiteralString, TypeVar

from service.domain import ChangeFilter, HistoryEntry
from service.errors import AppointmentNotFound, InvalidFields
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.rows import Row, Stored
from service.reads import by_revision, entries, occupied, past, present
from service.reads.current import MOST_LISTED, CurrentAppointments, Listing
from service.reads.moments import Moment, Now
from service.reads.occupied import Occupied, Wanted
from service.reads.replicas import Replicas
from service.reads.unconfirmed import fetch_confirmed
from service.reads.window import Window

T = TypeVar("T")

# One statement has one snapshot, so the rows are consistent with the revision.
_WITH_MOMENT: LiteralString = """
    SELECT organization.revision, organization.recorded_at, organization.clock, found.*
    FROM (
        SELECT
            coalesce(max(o.revision), 0) AS revision, max(o.recorded_at) AS recorded_at,
            {clock} AS clock
        FROM organizations o
        WHERE o.organization_id = %(organization_id)s
    ) AS organization
    LEFT JOIN LATERAL ({query}) AS found ON true
    ORDER BY {order}
"""

# The time of the state that is read. A hold that ended by then has expired.
_NOW: LiteralString = "greatest(max(o.recorded_at), now())"
_NOW_OF_ONE: LiteralString = f"""
    SELECT coalesce(max(o.revision), 0), max(o.recorded_at), {_NOW}
    FROM organizations o
    WHERE o.organization_id = %(organization_id)s
"""
_TIME_OF_REVISION: LiteralString = """(
    SELECT recorded_at
    FROM appointment_history
    WHERE organization_id = %(organization_id)s
        AND revision BETWEEN %(as_of)s AND %(as_of)s
    ORDER BY revision
)"""
# What is held now has not expired yet in the state of a time to come.
_AT_MOST_NOW: LiteralString = f"least(%(at)s::timestamptz, {_NOW})"

_GET: LiteralString = present.BY_ID.format(id="%(id)s")

_GET_AS_OF: LiteralString = f"""
    SELECT {rows.APPOINTMENT}
    FROM appointment_history
    WHERE organization_id = %(organization_id)s AND appointment_id = %(id)s
        AND revision <= %(as_of)s
    ORDER BY revision DESC
    LIMIT 1
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
class PageByRevision(Page[Stored]):
    """Every appointment whose latest change is up to `reached` is on the page, if it is selected.

    `last` is the revision of the state that the page shows.
    """

    reached: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesPage(Page[HistoryEntry]):
    """Every change up to the revision `reached` is on the page, unless the filter left it out."""

    reached: int


class ReadStore:
    """Reads from the primary, or from a replica if the caller allows an older state.

    `min_revision` None reads the latest state, from the primary. A number allows a replica
    that has this revision of the organization, and the revision that the read is about.
    `as_of` is the revision of a past state. Both raise InvalidFields if they are beyond the
    organization's latest revision. `at` is the time of the past state, None for the time of its
    revision.
    """

    def __init__(self, primary: Database, replicas: Replicas | None) -> None:
        self._primary = primary
        self._current = CurrentAppointments(primary)
        self._replicas = replicas

    @property
    def max_waiting(self) -> int:
        """How many statements may wait for a connection, and so how many reads for a batch."""
        return self._primary.max_waiting

    @property
    def epoch(self) -> str:
        """The epoch of the database."""
        return self._primary.epoch

    async def revision_at(self, organization_id: str, time: datetime) -> int:
        """Return the latest revision recorded at or before a time, or 0."""
        found = await self._primary.fetch(
            organization_id,
            "SELECT revision_at(%(id)s, %(time)s)",
            {"id": organization_id, "time": time},
        )
        revision: int = found[0][0]
        return revision

    async def now_at_replica(self, organization_id: str, *, min_revision: int) -> Now | None:
        """Return the moment at a replica that has a revision; None if the primary must be asked."""
        if self._replicas is None:
            return None
        found = await self._replicas.fetch(
            organization_id,
            _NOW_OF_ONE,
            {"organization_id": organization_id},
            revision=min_revision,
            epoch=self.epoch,
        )
        return Now(found[0][:2], found[0][2]) if found else None

    async def get(
        self,
        organization_id: str,
        id: str,
        *,
        as_of: int | None,
        at: datetime | None,
        min_revision: int | None,
    ) -> tuple[Stored, int]:
        """Return an appointment and the organization's revision.

        Raises AppointmentNotFound.
        """
        if as_of is None and min_revision is None and not self._primary.distributed:
            revision, clock, row = await self._current.get(organization_id, id)
            its_rows = () if row is None else (row,)
            items: Sequence[Stored] = rows.stored(
                organization_id, its_rows, clock, epoch=self.epoch
            )
        else:
            page = await self._read_stored(
                _GET if as_of is None else _GET_AS_OF,
                "1",
                {"organization_id": organization_id, "id": id, "as_of": as_of, "at": at},
                min_revision=min_revision,
            )
            revision, items = page.revision, page.items
        if not items:
            raise AppointmentNotFound(
                "the organization has no appointment with this id"
                if as_of is None
                else f"the organization had no appointment with this id then (revision {as_of})",
                organization_revision=revision,
            )
        return items[0], revision

    async def list(
        self,
        organization_id: str,
        window: Window,
        *,
        after: tuple[datetime, str] | None,
        limit: int,
        as_of: int | None,
        at: datetime | None,
        min_revision: int | None,
    ) -> Page[Stored]:
        """Return appointments by start and id, following the start and id in `after`."""
        if (
            window.start is not None
            and window.end is not None
            and window.start < window.end
            and not window.include_cancelled
            and after is None
            and as_of is None
            and min_revision is None
            and limit <= MOST_LISTED
            and not self._primary.distributed
        ):
            found = await self._current.list(
                Listing(organization_id, window.resource_id, window.start, window.end, limit)
            )
            if found is not None:
                return self._stored_page(organization_id, found)
        parameters = {
            **window.parameters,
            "organization_id": organization_id,
            "after_start": after[0] if after else None,
            "after_id": after[1] if after else None,
            "as_of": as_of,
            "at": at,
            "limit": limit,
        }
        if as_of is None:
            query = present.query(window, after=after is not None)
            return await self._read_stored(
                query, present.ORDER, parameters, min_revision=min_revision
            )
        return await self._list_past(
            window, parameters, as_of=as_of, limit=limit, min_revision=min_revision
        )

    async def _list_past(
        self,
        window: Window,
        parameters: Mapping[str, Any],
        *,
        as_of: int,
        limit: int,
        min_revision: int | None,
    ) -> Page[Stored]:
        parameters = {**parameters, "unlimited": None}
        after = parameters["after_start"] is not None
        by_place = past.by_place(window)
        budget = past.budget(limit)
        page = await self._read_stored(
            by_place, past.ORDER, {**parameters, "budget": budget}, min_revision=min_revision
        )
        if not past.is_spent(page.items, budget):
            return page
        most = past.few(limit, as_of)
        counted = await self._read(
            past.COUNT, "1", {**parameters, "most": most}, min_revision=min_revision
        )
        few = counted.items[0][0] < most
        return await self._read_stored(
            past.by_appointment(window, after=after) if few else by_place,
            past.ORDER,
            {**parameters, "budget": None},
            min_revision=min_revision,
        )

    async def list_by_revision(
        self,
        organization_id: str,
        window: Window,
        *,
        after: int,
        limit: int,
        as_of: int | None,
        at: datetime | None,
        min_revision: int | None,
    ) -> PageByRevision:
        """Return appointments by the revision of their latest change, following `after`.

        Looks only at the next `LOOKED_AT` changes, unless the organization has fewer
        appointments. So a page can be short or empty though more appointments follow.
        """
        through = min(after + by_revision.LOOKED_AT, entries.LATEST)
        parameters = {
            **window.parameters,
            "organization_id": organization_id,
            "after": after,
            "through": through if as_of is None else min(through, as_of),
            "unlimited": None,
            "as_of": as_of,
            "at": at,
            "limit": limit,
        }
        page = await self._read_stored(
            by_revision.by_change(window, is_past=as_of is not None),
            by_revision.ORDER,
            parameters,
            min_revision=min_revision,
        )
        last = page.revision if as_of is None else as_of
        if len(page.items) < limit and through < last:
            most = {**parameters, "most": by_revision.LOOKED_AT}
            counted = await self._read(past.COUNT, "1", most, min_revision=min_revision)
            if counted.items[0][0] < by_revision.LOOKED_AT:
                page = await self._read_stored(
                    by_revision.by_appointment(window, is_past=as_of is not None),
                    by_revision.ORDER,
                    parameters,
                    min_revision=min_revision,
                )
                last = through = page.revision if as_of is None else as_of
        items = page.items
        return PageByRevision(
            items=items,
            moment=page.moment,
            reached=items[-1].revision if len(items) == limit else max(after, min(through, last)),
            last=last,
        )

    async def history(
        self,
        organization_id: str,
        id: str,
        *,
        after: int,
        limit: int,
        min_revision: int | None,
    ) -> Page[HistoryEntry]:
        """Return the changes of one appointment after a revision.

        Raises AppointmentNotFound for an id without history.
        """
        page = await self._read(
            entries.OF_APPOINTMENT,
            entries.IN_ORDER,
            {"organization_id": organization_id, "id": id, "after": after, "limit": limit},
            min_revision=min_revision,
        )
        if after == 0 and not page.items:
            raise AppointmentNotFound(
                "the organization never had an appointment with this id",
                organization_revision=page.revision,
            )
        return Page(
            items=[
                rows.history_entry(organization_id, row, epoch=self.epoch) for row in page.items
            ],
            moment=page.moment,
        )

    async def changes(
        self,
        organization_id: str,
        selected: ChangeFilter,
        *,
        after: int,
        limit: int,
        min_revision: int | None,
    ) -> ChangesPage:
        """Return the changes of an organization after a revision that a filter selects.

        With a filter, looks only at the next `FILTERED_CHANGES`, so a page can be short or empty
        though more changes follow.
        """
        page = await self._read(
            entries.query(selected),
            entries.IN_ORDER,
            entries.parameters(organization_id, selected, after, limit),
            min_revision=min_revision,
        )
        items = [rows.history_entry(organization_id, row, epoch=self.epoch) for row in page.items]
        if len(items) == limit:
            reached = items[-1].revision
        else:
            reached = max(after, min(entries.last(selected, after), page.revision))
        return ChangesPage(items=items, moment=page.moment, reached=reached)

    async def occupied(
        self,
        organization_id: str,
        resource_ids: Sequence[str],
        *,
        start: int,
        end: int,
        as_of: int | None,
        min_revision: int | None,
    ) -> Page[Occupied]:
        """Return what occupies each resource, as ranges that intersect `[start, end)`."""
        page = await self._read(
            occupied.query(as_of),
            occupied.IN_ORDER,
            occupied.parameters(organization_id, resource_ids, start, end, as_of),
            min_revision=min_revision,
        )
        return Page(
            items=[occupied.occupied(row) for row in page.items],
            moment=page.moment,
        )

    async def occupied_of_several(
        self, organization_id: str, wanted: Sequence[Wanted]
    ) -> Sequence[Page[Occupied]]:
        """Return what occupies the resources of several queries, in the same latest state."""
        page = await self._read(
            occupied.SEVERAL,
            occupied.IN_ORDER,
            occupied.parameters_of_several(organization_id, wanted),
            min_revision=None,
        )
        items = map(occupied.occupied, page.items)
        return [
            Page(items=list(islice(items, len(each.resource_ids))), moment=page.moment)
            for each in wanted
        ]

    async def _read(
        self,
        query: LiteralString,
        order: LiteralString,
        parameters: Mapping[str, Any],
        *,
        min_revision: int | None,
    ) -> Page[Row]:
        found = await self._fetch(query, order, parameters, min_revision=min_revision, raw=False)
        revision, recorded_at, *_ = found[0]
        return Page(items=_without_moment(found), moment=(revision, recorded_at))

    async def _read_stored(
        self,
        query: LiteralString,
        order: LiteralString,
        parameters: Mapping[str, Any],
        *,
        min_revision: int | None,
    ) -> Page[Stored]:
        """Read rows that begin with the columns of an appointment."""
        found = await self._fetch(query, order, parameters, min_revision=min_revision, raw=True)
        return self._stored_page(parameters["organization_id"], found)

    def _stored_page(self, organization_id: str, found: Sequence[Row]) -> Page[Stored]:
        revision, recorded_at, clock, *_ = found[0]
        items = _without_moment(found)
        return Page(
            items=rows.stored(organization_id, items, clock, epoch=self.epoch),
            moment=(revision, rows.time_of(recorded_at)),
        )

    async def _fetch(
        self,
        query: LiteralString,
        order: LiteralString,
        parameters: Mapping[str, Any],
        *,
        min_revision: int | None,
        raw: bool,
    ) -> Sequence[Row]:
        organization_id: str = parameters["organization_id"]
        as_of = parameters.get("as_of")
        clock = _NOW
        if as_of is not None:
            clock = _TIME_OF_REVISION if parameters.get("at") is None else _AT_MOST_NOW
        statement = _WITH_MOMENT.format(query=query, order=order, clock=clock)
        # A replica without the revision `after` would return no changes, as if there were none.
        needed = max(min_revision or 0, as_of or 0, parameters.get("after", 0))
        if self._replicas is not None and min_revision is not None:
            found = await self._replicas.fetch(
                organization_id, statement, parameters, revision=needed, epoch=self.epoch, raw=raw
            )
            if found is not None:
                return found
        found = await fetch_confirmed(
            self._primary, organization_id, statement, parameters, revision=needed, raw=raw
        )
        latest = found[0][0]
        for field, revision in (("min_revision", min_revision), ("as_of_revision", as_of)):
            if revision is not None and revision > latest:
                raise InvalidFields.beyond_latest(field, latest)
        return found


def _without_moment(found: Sequence[Row]) -> list[Row]:
    """Split off moment and clock. Without a match, there is one row with nothing else."""
    return [row[3:] for row in found if row[3] is not None]
