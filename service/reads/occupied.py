"""The query of what occupies resources. Ranges are read as bytes, which is faster than as rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from operator import lt
from struct import unpack
from typing import Any, LiteralString, NamedTuple

from service.availability.ranges import Ranges
from service.postgres import rows
from service.postgres.rows import Row
from service.times import POSTGRES_EPOCH, time_at

# Ranges of one resource never overlap, so only the last one that starts before the window can
# reach into it. With the row comparison only one index has this order; the row found may belong
# to another resource.
_OCCUPIED: LiteralString = f"""
    SELECT wanted.resource_id, found.ranges, found.hold_until, wanted.number
    FROM {{wanted}}
    CROSS JOIN LATERAL (
        SELECT string_agg(
            timestamptz_send(part.start_time) || timestamptz_send(part.end_time), ''
        ) AS ranges, min(part.hold_until) AS hold_until
        FROM (
            SELECT last.start_time, last.end_time, last.hold_until
            FROM (
                SELECT a.resource_id, a.start_time, a.end_time, a.hold_until
                FROM appointments a
                WHERE a.organization_id = %(organization_id)s
                    AND (a.resource_id, a.start_time) < (wanted.resource_id, {{start}})
                    AND {rows.OCCUPIES}
                ORDER BY a.resource_id DESC, a.start_time DESC
                LIMIT 1
            ) AS last
            WHERE last.resource_id = wanted.resource_id AND last.end_time > {{start}}
            UNION ALL
            SELECT a.start_time, a.end_time, a.hold_until
            FROM appointments a
            WHERE a.organization_id = %(organization_id)s
                AND a.resource_id = wanted.resource_id
                AND a.start_time >= {{start}}
                AND a.start_time < {{end}}
                AND {rows.OCCUPIES}
        ) AS part
    ) AS found
"""
_ONE: LiteralString = _OCCUPIED.format(
    wanted="unnest(%(resource_ids)s::text[]) WITH ORDINALITY AS wanted (resource_id, number)",
    start="%(start)s",
    end="%(end)s",
)
# Lists are sent in binary (%b), which takes a seventh of the time of texts with their quoting.
SEVERAL: LiteralString = _OCCUPIED.format(
    wanted="""
        unnest(%(resource_ids)b::text[], %(starts)b::timestamptz[], %(ends)b::timestamptz[])
        WITH ORDINALITY AS wanted (resource_id, start_time, end_time, number)
    """,
    start="wanted.start_time",
    end="wanted.end_time",
)
"""The latest state, for the parameters of `parameters_of_several`."""

_OCCUPIED_AS_OF: LiteralString = f"""
    SELECT wanted.resource_id, found.ranges, found.hold_until, wanted.number
    FROM unnest(%(resource_ids)s::text[]) WITH ORDINALITY AS wanted (resource_id, number)
    LEFT JOIN (
        SELECT taken.resource_id, string_agg(
            timestamptz_send(past.start_time) || timestamptz_send(past.end_time), ''
        ) AS ranges, NULL::timestamptz AS hold_until
        FROM (
            SELECT DISTINCT ON (appointment_id)
                resource_id, additional_resource_ids, start_time, end_time, state, hold_until
            FROM appointment_history
            WHERE organization_id = %(organization_id)s AND revision <= %(as_of)s
            ORDER BY appointment_id, revision DESC
        ) AS past
        CROSS JOIN LATERAL unnest(
            array_prepend(past.resource_id, past.additional_resource_ids)
        ) AS taken (resource_id)
        WHERE taken.resource_id = ANY (%(resource_ids)s)
            AND {rows.OCCUPIES}
            AND past.start_time < %(end)s
            AND past.end_time > %(start)s
        GROUP BY taken.resource_id
    ) AS found ON found.resource_id = wanted.resource_id
"""

IN_ORDER: LiteralString = "number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupied:
    """What occupies a resource.

    `content` has two numbers of eight bytes for each range, as PostgreSQL sends its times.
    `first_expiry` is when the first hold among it expires, None without holds.
    """

    resource_id: str
    content: bytes
    first_expiry: datetime | None

    @property
    def count(self) -> int:
        """The number of ranges."""
        return len(self.content) // 16

    @property
    def ranges(self) -> Ranges:
        """The ranges in microseconds since 1970."""
        numbers = unpack(f">{len(self.content) // 8}q", self.content)
        times = [time + POSTGRES_EPOCH for time in numbers]
        starts, ends = times[::2], times[1::2]
        # They are usually in order and apart.
        if all(map(lt, ends, starts[1:])):
            return Ranges(starts, ends)
        return Ranges.union((starts, ends))


class Wanted(NamedTuple):
    """What to read: ranges of these resources that intersect `[start, end)`."""

    resource_ids: Sequence[str]
    start: int
    end: int

    def repeated(self, time: int) -> list[datetime]:
        """Return a time for PostgreSQL, once for each resource."""
        return [_time(time)] * len(self.resource_ids)


def query(as_of: int | None) -> LiteralString:
    """Return the query for the parameters below; its rows are read by `occupied`."""
    return _ONE if as_of is None else _OCCUPIED_AS_OF


def parameters(
    organization_id: str, resource_ids: Sequence[str], start: int, end: int, as_of: int | None
) -> dict[str, Any]:
    return {
        "organization_id": organization_id,
        "resource_ids": list(resource_ids),
        "start": _time(start),
        "end": _time(end),
        "as_of": as_of,
    }


def parameters_of_several(organization_id: str, wanted: Sequence[Wanted]) -> dict[str, Any]:
    return {
        "organization_id": organization_id,
        "resource_ids": [*chain.from_iterable([each.resource_ids for each in wanted])],
        "starts": [time for each in wanted for time in each.repeated(each.start)],
        "ends": [time for each in wanted for time in each.repeated(each.end)],
    }


def occupied(found: Row) -> Occupied:
    """Convert a row."""
    resource_id, content, first_expiry, _ = found
    return Occupied(resource_id=resource_id, content=content or b"", first_expiry=first_expiry)


def _time(time: int) -> datetime:
    """Return a time for PostgreSQL, at most the first or last that Python has."""
    try:
        return time_at(time)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if time > 0 else datetime.min.replace(tzinfo=UTC)
