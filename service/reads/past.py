"""The queries of a list as of a revision.

An appointment was where one of its changes up to that revision placed it: gave it its resource
and its range. So the places are read in the order of their starts from an index of these changes,
and for each the state of its appointment then. Those that the appointment had left by then are
dropped, which costs one look each. A query that has looked at `budget` places says so, and the
states of all appointments may be cheaper then.
"""

from collections.abc import Sequence
from math import isqrt
from typing import LiteralString

from service.postgres import rows
from service.postgres.rows import Stored
from service.reads.window import Window

# The order of the rows of all queries.
ORDER: LiteralString = "place_start, appointment_id"

# A list reads the places of this long before it begins. The longer ones have an index of ranges.
_SHORT: LiteralString = "interval '8 hours'"

# The row comparison is there on the first page too, since its order has only the index by start. It
# is the only lower limit: with another one, the index may be read from the lower of the two.
_PLACED: LiteralString = """
    SELECT start_time, appointment_id
    FROM {source}
    WHERE organization_id = %(organization_id)s AND revision <= %(as_of)s AND placed
        AND (start_time, appointment_id) > (
            greatest(%(after_start)s::timestamptz, {first}),
            CASE WHEN %(after_start)s::timestamptz >= {first} THEN %(after_id)s::text ELSE '' END
        )
        {places}
"""

# The limit is NULL. As the planner does not know that, it prefers an index in the order to a sort.
_IN_ORDER: LiteralString = "ORDER BY start_time, appointment_id LIMIT %(unlimited)s"

_USES_RESOURCE: LiteralString = (
    "(resource_id = %(resource_id)s OR %(resource_id)s = ANY (additional_resource_ids))"
)

# The resource is the only one, or one of several: an index for each.
_OF_RESOURCE: tuple[LiteralString, LiteralString] = (
    " AND resource_id = %(resource_id)s",
    " AND additional_resource_ids IS NOT NULL AND %(resource_id)s = ANY (additional_resource_ids)",
)

# Few long ones run at a time. OFFSET 0 keeps the order out of the subquery: with it the planner
# prefers an index by start, which reads everything that ever started.
_LONG: LiteralString = f"""(
        SELECT organization_id, revision, placed, start_time, appointment_id
        FROM appointment_history
        WHERE organization_id = %(organization_id)s AND placed
            AND end_time - start_time > {_SHORT}
            AND tstzrange(start_time, end_time) @> %(window_start)s::timestamptz
            {{same}}
        OFFSET 0
    ) AS long"""

# The state of the appointment of `place`.
# The row comparison and its order select the index by appointment. The lower limit, which
# excludes nothing, saves the rest of a page of the index.
STATE: LiteralString = f"""
    SELECT {rows.APPOINTMENT}
    FROM appointment_history h
    WHERE h.organization_id = %(organization_id)s
        AND h.appointment_id >= place.appointment_id
        AND (h.appointment_id, h.revision) <= (place.appointment_id, %(as_of)s)
    ORDER BY h.appointment_id DESC, h.revision DESC
    LIMIT 1
"""

_BY_PLACE: LiteralString = f"""
    SELECT state.*, place.start_time AS place_start, place.number
    FROM (
        SELECT start_time, appointment_id,
            row_number() OVER (ORDER BY start_time, appointment_id) AS number
        FROM (
            SELECT DISTINCT ON (start_time, appointment_id) start_time, appointment_id
            FROM ({{places}}) AS placed
            ORDER BY start_time, appointment_id
            LIMIT %(budget)s
        ) AS places
    ) AS place
    CROSS JOIN LATERAL ({STATE}) AS state
    WHERE {{states}} AND state.start_time = place.start_time OR place.number = %(budget)s
    ORDER BY place.start_time, place.appointment_id
    LIMIT %(limit)s
"""

# The ids of all appointments. OFFSET 0 keeps it apart from the look at each of them.
EVERY_APPOINTMENT: LiteralString = """
    SELECT appointment_id
    FROM appointments
    WHERE organization_id = %(organization_id)s AND ordinal = 0
    OFFSET 0
"""

_BY_APPOINTMENT: LiteralString = f"""
    SELECT state.*, state.start_time AS place_start, 0 AS number
    FROM ({EVERY_APPOINTMENT}) AS place
    CROSS JOIN LATERAL ({STATE}) AS state
    WHERE state.appointment_id = place.appointment_id AND {{states}}
    ORDER BY state.start_time, state.appointment_id
    LIMIT %(limit)s
"""

# Up to `most` of the appointments.
COUNT: LiteralString = """
    SELECT count(*)
    FROM (
        SELECT 1
        FROM appointments
        WHERE organization_id = %(organization_id)s AND ordinal = 0
        LIMIT %(most)s
    ) AS appointment
"""


def budget(limit: int) -> int:
    """Return how many places a page may cost before the appointments are counted."""
    return 10 * limit


def is_spent(found: Sequence[Stored], budget: int) -> bool:
    """Return whether the page may lack rows, because the budget was spent before it was full."""
    return any(each.row[-1] == budget for each in found)


def few(limit: int, as_of: int) -> int:
    """Return up to how many appointments are read faster than the places of a page.

    With n appointments, there are up to as_of / n places for each one that the page shows.
    """
    return isqrt(limit * as_of)


def by_place(window: Window) -> LiteralString:
    """Build the query that reads the places in the order of the list."""
    before_end: LiteralString = ""
    if window.end is not None:
        before_end = f" AND start_time {window.before_end}"
    states = " AND ".join(_states(window))
    if window.start is None:
        return _part(_placed(window, "'-infinity'", before_end), states)
    short: LiteralString = f"%(window_start)s::timestamptz - {_SHORT}"
    running: LiteralString = " AND start_time < %(window_start)s AND end_time > %(window_start)s"
    long = _PLACED.format(
        source=_LONG.format(same="" if window.resource_id is None else f"AND {_USES_RESOURCE}"),
        first="'-infinity'",
        places=f" AND start_time < {short}",
    )
    parts = [
        _part(_placed(window, "%(window_start)s::timestamptz", before_end), states),
        _part(_placed(window, short, before_end + running), states),
        _part(long, states),
    ]
    union: LiteralString = " UNION ALL ".join(f"({part})" for part in parts)
    return f"SELECT * FROM ({union}) AS parts ORDER BY {ORDER} LIMIT %(limit)s"


def by_appointment(window: Window, *, after: bool) -> LiteralString:
    """Build the query that reads the state of every appointment."""
    states = selected(window)
    if after:
        states.append("(state.start_time, state.appointment_id) > (%(after_start)s, %(after_id)s)")
    return _BY_APPOINTMENT.format(states=" AND ".join(states))


def selected(window: Window) -> list[LiteralString]:
    """Return the conditions on a state."""
    states = _states(window)
    if window.end is not None:
        states.append(f"state.start_time {window.before_end}")
    return states


def _states(window: Window) -> list[LiteralString]:
    """Return the conditions on a state, except those on its start."""
    states: list[LiteralString] = ["true"]
    if window.resource_id is not None:
        states.append(_USES_RESOURCE)
    if not window.include_cancelled:
        states.append(rows.OCCUPIES)
    if window.start is not None:
        states.append("state.end_time > %(window_start)s")
    return states


def _placed(window: Window, first: LiteralString, conditions: LiteralString) -> LiteralString:
    """Return the query of the places from the start `first` on that fulfil conditions."""
    table: LiteralString = "appointment_history"
    if window.resource_id is None:
        return _PLACED.format(source=table, first=first, places=conditions)
    parts = [
        _PLACED.format(source=table, first=first, places=conditions + each) for each in _OF_RESOURCE
    ]
    return " UNION ALL ".join(f"({part} {_IN_ORDER})" for part in parts)


def _part(places: LiteralString, states: LiteralString) -> LiteralString:
    return _BY_PLACE.format(places=places, states=states)
