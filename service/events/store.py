"""The publisher's lease, its cursor in each organization, and the changes to publish."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import LiteralString

from service.domain import HistoryEntry
from service.postgres import rows
from service.postgres.database import Database
from service.postgres.trace_contexts import trace_contexts

# Organizations per scan, which then takes some ten milliseconds.
SCAN_SIZE: LiteralString = "10000"

# Leases use only the database's clock, since the clocks of workers may differ.
_TAKE: LiteralString = """
    INSERT INTO public.event_publishers AS publisher (consumer, fence, leased_until)
    VALUES (%(consumer)s, 1, clock_timestamp() + %(lease)s * interval '1 second')
    ON CONFLICT (consumer) DO UPDATE
    SET fence = publisher.fence + 1, leased_until = EXCLUDED.leased_until
    WHERE publisher.leased_until < clock_timestamp()
    RETURNING fence
"""

_RENEW: LiteralString = """
    UPDATE public.event_publishers
    SET leased_until = clock_timestamp() + %(lease)s * interval '1 second'
    WHERE consumer = %(consumer)s AND fence = %(fence)s
    RETURNING fence
"""

# The next fence, so that a renewal that is still under way does not take the lease back.
_RELEASE: LiteralString = """
    UPDATE public.event_publishers
    SET fence = fence + 1, leased_until = clock_timestamp()
    WHERE consumer = %(consumer)s AND fence = %(fence)s
"""

_BEHIND: LiteralString = f"""
    WITH part AS (
        SELECT organization_id, revision
        FROM public.organizations
        WHERE organization_id > %(after)s
        ORDER BY organization_id
        LIMIT {SCAN_SIZE}
    )
    SELECT
        count(*) = {SCAN_SIZE},
        max(part.organization_id),
        coalesce(sum(part.revision - coalesce(cursor.revision, 0)), 0)::bigint,
        array_agg(part.organization_id)
            FILTER (WHERE part.revision > coalesce(cursor.revision, 0)),
        array_agg(coalesce(cursor.revision, 0))
            FILTER (WHERE part.revision > coalesce(cursor.revision, 0))
    FROM part
    LEFT JOIN public.event_cursors AS cursor
        ON cursor.organization_id = part.organization_id AND cursor.consumer = %(consumer)s
"""

_ENTRIES_OF: LiteralString = f"""
    SELECT {rows.HISTORY_ENTRY}{{organization}}
    FROM public.appointment_history
    WHERE organization_id = {{wanted}} AND revision > {{after}}
    ORDER BY revision
    LIMIT %(each)s
"""

_ENTRIES: LiteralString = f"""
    SELECT entry.*, wanted.organization_id
    FROM unnest(%(organizations)s::text[], %(cursors)s::bigint[])
        AS wanted (organization_id, after)
    CROSS JOIN LATERAL (
        {_ENTRIES_OF.format(organization="", wanted="wanted.organization_id", after="wanted.after")}
    ) AS entry
    ORDER BY wanted.organization_id, entry.revision
"""

# In a distributed database, one statement for each organization: its node runs it.
_ENTRIES_OF_ONE: LiteralString = _ENTRIES_OF.format(
    organization=", organization_id", wanted="%(organization)s::text", after="%(after)s"
)

_ADVANCE: LiteralString = """
    SELECT advance_cursors(
        %(consumer)s::text, %(fence)s::bigint, %(lease)s::double precision,
        %(organizations)s::text[], %(revisions)s::bigint[]
    )
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The pending changes of organizations whose ids are in a range that ends with `end`."""

    last: bool
    end: str
    # Number of changes not published yet.
    behind: int
    # The cursors of the organizations that have such changes.
    cursors: Mapping[str, int]


class EventStore:
    """The lease and cursors of one consumer. All methods raise what Database.fetch raises."""

    def __init__(self, database: Database, consumer: str = "rabbitmq") -> None:
        self._database = database
        self._consumer = consumer

    async def acquire(self, lease: float) -> int | None:
        """Acquire the lease for a time (seconds) unless another worker holds it.

        Returns the fence, which `renew` and `advance` require, or None.
        """
        found = await self._database.fetch_across(
            _TAKE, {"consumer": self._consumer, "lease": lease}
        )
        return found[0][0] if found else None

    async def renew(self, fence: int, lease: float) -> bool:
        """Renew the lease. False if it was lost."""
        parameters = {"consumer": self._consumer, "fence": fence, "lease": lease}
        return bool(await self._database.fetch_across(_RENEW, parameters))

    async def release(self, fence: int) -> None:
        """End the lease, unless it was lost."""
        parameters = {"consumer": self._consumer, "fence": fence}
        await self._database.fetch_across(_RELEASE, parameters)

    async def scan(self, after: str) -> Scan:
        """Return the pending changes of the next organizations, by id."""
        parameters = {"consumer": self._consumer, "after": after}
        ((more, end, behind, organizations, cursors),) = await self._database.fetch_across(
            _BEHIND, parameters
        )
        return Scan(
            last=not more,
            end=end or "",
            behind=behind,
            cursors=dict(zip(organizations or (), cursors or (), strict=True)),
        )

    async def entries(self, cursors: Mapping[str, int], *, each: int) -> list[HistoryEntry]:
        """Return up to `each` changes after each cursor, by organization and revision."""
        if self._database.distributed:
            found = [
                row
                for organization_id in sorted(cursors)
                for row in await self._database.fetch_across(
                    _ENTRIES_OF_ONE,
                    {
                        "organization": organization_id,
                        "after": cursors[organization_id],
                        "each": each,
                    },
                )
            ]
        else:
            found = await self._database.fetch_across(
                _ENTRIES,
                {
                    "organizations": list(cursors),
                    "cursors": list(cursors.values()),
                    "each": each,
                },
            )
        epoch = self._database.epoch
        return [rows.history_entry(row[-1], row, epoch=epoch) for row in found]

    async def trace_contexts(
        self, cursors: Mapping[str, int], reached: Mapping[str, int]
    ) -> dict[tuple[str, int], str]:
        """Return the traceparents of the sampled changes after each cursor.

        `reached` has the last revision of each organization that has such changes.
        """
        ranges = {each: (cursors[each], through) for each, through in reached.items()}
        return await trace_contexts(self._database, ranges)

    async def advance(self, cursors: Mapping[str, int], fence: int, lease: float) -> bool:
        """Move cursors forward and renew the lease; False, with nothing moved, if the lease
        was lost."""
        [(moved,)] = await self._database.fetch_across(
            _ADVANCE,
            {
                "consumer": self._consumer,
                "fence": fence,
                "lease": lease,
                "organizations": list(cursors),
                "revisions": list(cursors.values()),
            },
        )
        return bool(moved)
