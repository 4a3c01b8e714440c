"""The query of a list of the current state, by start.

The SQL function `listed_appointments` repeats it for the most common window (docs/decisions/0038).
"""

from collections.abc import Sequence
from typing import LiteralString

from service.postgres import rows
from service.reads.window import Window

ORDER: LiteralString = "start_time, appointment_id"

# One appointment. The row comparison and its order select the primary key. With equalities,
# statistics of many organizations select the index by start, of which every entry of the
# organization is read.
BY_ID: LiteralString = f"""
    SELECT {rows.APPOINTMENT}
    FROM appointments
    WHERE organization_id = %(organization_id)s AND appointment_id >= {{id}}
        AND (appointment_id, ordinal) <= ({{id}}, 0)
    ORDER BY appointment_id DESC, ordinal DESC
    LIMIT 1
"""


def query(window: Window, *, after: bool) -> LiteralString:
    """Build the query of a list.

    Appointments that start inside the window are read in order from a B-tree index. Appointments
    that started before are found as ranges that contain the start of the window, with one GiST
    index each for those that occupy it and the others.
    """
    beyond: list[LiteralString] = []
    if after:
        beyond.append("(start_time, appointment_id) > (%(after_start)s, %(after_id)s)")
    before_end: list[LiteralString] = []
    if window.end is not None:
        before_end.append(f"start_time {window.before_end}")
    parts = _parts(window, ["ordinal = 0"], beyond, before_end, rows.APPOINTMENT)
    if window.resource_id is not None:
        parts += [
            _OF_SHARED.format(shared=shared)
            for shared in _parts(
                window, ["ordinal > 0"], beyond, before_end, "appointment_id, start_time"
            )
        ]
    if len(parts) == 1:
        return parts[0]
    union: LiteralString = " UNION ALL ".join(f"({part})" for part in parts)
    return f"SELECT * FROM ({union}) AS parts ORDER BY {ORDER} LIMIT %(limit)s"


# The appointments of rows that stand for a further resource, which have no content.
_OF_SHARED: LiteralString = f"""
    SELECT whole.*
    FROM ({{shared}}) AS shared
    CROSS JOIN LATERAL ({BY_ID.format(id="shared.appointment_id")}) AS whole
"""


def _parts(
    window: Window,
    same: Sequence[LiteralString],
    beyond: Sequence[LiteralString],
    before_end: Sequence[LiteralString],
    columns: LiteralString,
) -> list[LiteralString]:
    """Return the queries whose union is the list."""
    same = [*same, "organization_id = %(organization_id)s"]
    if window.resource_id is not None:
        same.append("resource_id = %(resource_id)s")
    starting = [*same, *beyond, *before_end]
    if not window.include_cancelled:
        starting.append(rows.OCCUPIES)
    if window.start is None:
        return [_part("appointments", starting, columns=columns)]
    starting.append("start_time >= %(window_start)s")
    parts = [_part("appointments", starting, columns=columns)]
    states: list[LiteralString] = [
        # A hold that has expired is in the index until that is recorded.
        "state IN ('ACTIVE', 'HELD')" if window.include_cancelled else rows.OCCUPIES
    ]
    if window.include_cancelled:
        states.append("state IN ('EXPIRED', 'CANCELLED')")
    for state in states:
        running = _where(
            [*same, state, "tstzrange(start_time, end_time) @> %(window_start)s::timestamptz"]
        )
        # Few appointments run at a time. OFFSET 0 keeps the other conditions and the order
        # out of the subquery: with them the planner prefers an index by start, which reads
        # everything that ever started.
        fenced: LiteralString = f"(SELECT * FROM appointments {running} OFFSET 0) AS running"
        parts.append(_part(fenced, [*beyond, "start_time < %(window_start)s"], columns=columns))
    return parts


def _part(
    source: LiteralString, conditions: Sequence[LiteralString], *, columns: LiteralString
) -> LiteralString:
    where = _where(conditions)
    return f"SELECT {columns} FROM {source} {where} ORDER BY {ORDER} LIMIT %(limit)s"


def _where(conditions: Sequence[LiteralString]) -> LiteralString:
    every: LiteralString = " AND ".join(conditions)
    return f"WHERE {every}" if conditions else ""
