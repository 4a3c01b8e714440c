"""The traces of which changes are part, as stored with them. Read only while traces are on."""

from collections.abc import Mapping
from typing import LiteralString

from service.postgres.database import Database

# The changes of a page, which the caller has just read. The name is looked up in the history first:
# without the column, in a database of the previous version, it is that of `absent`.
_CONTEXTS: LiteralString = """
    SELECT wanted.organization_id, stored.revision, stored.trace_context
    FROM (SELECT NULL::text AS trace_context) AS absent
    CROSS JOIN
        unnest(%(organizations)s::text[], %(after)s::bigint[], %(through)s::bigint[])
        AS wanted (organization_id, after, through)
    CROSS JOIN LATERAL (
        SELECT revision, trace_context
        FROM public.appointment_history
        WHERE organization_id = wanted.organization_id
            AND revision > wanted.after
            AND revision <= wanted.through
        ORDER BY revision
    ) AS stored
    WHERE stored.trace_context IS NOT NULL
"""

# In a distributed database, one statement for each organization: its node runs it.
_CONTEXTS_OF_ONE: LiteralString = """
    SELECT organization_id, revision, trace_context
    FROM public.appointment_history
    WHERE organization_id = %(organization)s
        AND revision > %(after)s
        AND revision <= %(through)s
        AND trace_context IS NOT NULL
"""


async def trace_contexts(
    database: Database, ranges: Mapping[str, tuple[int, int]]
) -> dict[tuple[str, int], str]:
    """Return the traceparents of the sampled changes, by organization and revision.

    A range begins after its first revision and ends with its second. Raises what
    Database.fetch_across raises.
    """
    if database.distributed:
        found = [
            row
            for organization_id, (after, through) in ranges.items()
            for row in await database.fetch_across(
                _CONTEXTS_OF_ONE,
                {"organization": organization_id, "after": after, "through": through},
            )
        ]
    else:
        found = await database.fetch_across(
            _CONTEXTS,
            {
                "organizations": list(ranges),
                "after": [after for after, _ in ranges.values()],
                "through": [through for _, through in ranges.values()],
            },
        )
    return {(organization_id, revision): context for organization_id, revision, context in found}
