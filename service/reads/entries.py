"""The queries for entries of history: of one appointment, or of an organization with a filter."""

from typing import Any, LiteralString

from service.domain import ChangeFilter
from service.postgres import rows

# How many changes a read with a filter looks at, which limits its cost.
FILTERED_CHANGES = 10_000

IN_ORDER: LiteralString = "found.revision"

_ENTRIES: LiteralString = f"""
    SELECT {rows.HISTORY_ENTRY}
    FROM appointment_history
    WHERE organization_id = %(organization_id)s AND revision > %(after)s {{conditions}}
    ORDER BY revision
    LIMIT %(limit)s
"""

OF_APPOINTMENT: LiteralString = _ENTRIES.format(conditions="AND appointment_id = %(id)s")

# `ChangeFilter.selects` is the same condition.
_OF_RESOURCE: LiteralString = """
    AND (
        resource_id = %(resource_id)s
        OR %(resource_id)s = ANY (additional_resource_ids)
        OR %(resource_id)s = ANY (released_resource_ids)
    )
"""


def query(selected: ChangeFilter) -> LiteralString:
    """Return the query for the parameters below."""
    if selected.selects_all:
        return _ENTRIES.format(conditions="")
    conditions: LiteralString = "AND revision <= %(through)s"
    if selected.changes:
        conditions += " AND change = ANY (%(changes)s)"
    if selected.resource_id is not None:
        conditions += _OF_RESOURCE
    return _ENTRIES.format(conditions=conditions)


def parameters(
    organization_id: str, selected: ChangeFilter, after: int, limit: int
) -> dict[str, Any]:
    return {
        "organization_id": organization_id,
        "resource_id": selected.resource_id,
        "changes": [change.value for change in selected.kinds],
        "after": after,
        "through": last(selected, after),
        "limit": limit,
    }


def last(selected: ChangeFilter, after: int) -> int:
    """Return the revision up to which changes are looked at: revisions have no gaps."""
    return LATEST if selected.selects_all else min(after + FILTERED_CHANGES, LATEST)


LATEST = 2**63 - 1
