"""The queries of a list by revision: of the latest change of each appointment.

There is no index by this revision: it would change with every write, so that no update of an
appointment could be a heap-only one. The revisions are read from the history instead, in order, and
those that are not their appointment's latest are dropped, which costs one look each.
"""

from typing import LiteralString

from service.reads import past, present
from service.reads.window import Window

# How many changes a page looks at, which limits its cost. If the organization has fewer
# appointments, all of them are looked at instead.
LOOKED_AT = 10_000

ORDER: LiteralString = "found.revision"

_PRESENT: LiteralString = present.BY_ID.format(id="place.appointment_id")

# The inner limit is NULL. As the planner does not know that, it prefers the primary key to a sort.
_BY_CHANGE: LiteralString = """
    SELECT state.*
    FROM (
        SELECT appointment_id, revision
        FROM appointment_history
        WHERE organization_id = %(organization_id)s
            AND revision > %(after)s AND revision <= %(through)s
        ORDER BY revision
        LIMIT %(unlimited)s
    ) AS place
    CROSS JOIN LATERAL ({state}) AS state
    WHERE state.revision = place.revision AND {states}
    ORDER BY place.revision
    LIMIT %(limit)s
"""

_BY_APPOINTMENT: LiteralString = f"""
    SELECT state.*
    FROM ({past.EVERY_APPOINTMENT}) AS place
    CROSS JOIN LATERAL ({{state}}) AS state
    WHERE state.appointment_id = place.appointment_id AND state.revision > %(after)s AND {{states}}
    ORDER BY state.revision
    LIMIT %(limit)s
"""


def by_change(window: Window, *, is_past: bool) -> LiteralString:
    """Build the query that reads the changes in order."""
    return _query(_BY_CHANGE, window, is_past)


def by_appointment(window: Window, *, is_past: bool) -> LiteralString:
    """Build the query that reads the state of every appointment."""
    return _query(_BY_APPOINTMENT, window, is_past)


def _query(query: LiteralString, window: Window, is_past: bool) -> LiteralString:
    states = " AND ".join(past.selected(window))
    return query.format(state=past.STATE if is_past else _PRESENT, states=states)
