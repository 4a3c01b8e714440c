"""Leases of webhooks, and the progress of each.

All times are the database's. Recording progress requires the claim's fence and the cursor
that was recorded last. A worker whose lease has expired, or whose webhook was replayed
meanwhile, records nothing.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import LiteralString, NamedTuple

from service.postgres.database import Database
from service.postgres.trace_contexts import trace_contexts
from service.webhooks.webhook import Attempt, Claim

# In the order of `Claim`.
_COLUMNS: LiteralString = """
    organization_id, webhook_id, fence, url, changes, resource_id, live_secrets, header_names,
    header_values, disabled, cursor_revision, attempts, updated_at
"""

_CLAIM: LiteralString = f"""
    SELECT {_COLUMNS}
    FROM claim_webhooks(
        %(slots)s::integer, %(failing_slots)s::integer, %(lease)s::double precision
    )
"""

_ADVANCE: LiteralString = f"""
    SELECT {_COLUMNS}
    FROM advance_webhook(
        %(organization_id)s::text, %(id)s::text, %(fence)s::bigint, %(cursor)s::bigint,
        %(reached)s::bigint, %(release)s::boolean, %(lease)s::double precision, %(sent)s::json
    )
"""

_FAIL: LiteralString = f"""
    SELECT {_COLUMNS}
    FROM fail_webhook(
        %(organization_id)s::text, %(id)s::text, %(fence)s::bigint, %(cursor)s::bigint,
        %(updated_at)s::timestamptz, %(wait)s::double precision, %(gone)s::boolean,
        %(give_up_after)s::double precision, %(sent)s::json
    )
"""

_RELEASE: LiteralString = """
    SELECT release_webhook(
        %(organization_id)s::text, %(id)s::text, %(fence)s::bigint, %(wait)s::double precision
    )
"""


class Sent(NamedTuple):
    """A change that was sent, the number of the attempt, and its outcome."""

    revision: int
    attempt: int
    outcome: Attempt


class ClaimStore:
    """Times are in seconds. Every method raises Overloaded, LockTimeout, DatabaseUnavailable."""

    def __init__(self, database: Database, *, lease: float, give_up_after: float) -> None:
        self._database = database
        self._lease = lease
        self._give_up_after = give_up_after

    async def claim(self, *, slots: int, failing_slots: int) -> list[Claim]:
        """Lease webhooks that are due: at most `slots`, and `failing_slots` whose last
        attempt failed."""
        found = await self._database.fetch_across(
            _CLAIM, {"slots": slots, "failing_slots": failing_slots, "lease": self._lease}
        )
        return [Claim(*row) for row in found]

    async def advance(
        self, claim: Claim, sent: Sequence[Sent], *, reached: int, release: bool
    ) -> Claim | None:
        """Record that every change up to a revision was delivered or skipped.

        Renews the lease, or ends it with `release`. Returns the webhook as it is now, or None
        if nothing was recorded because the lease was lost or the webhook was replayed.
        """
        return await self._record(_ADVANCE, claim, sent, reached=reached, release=release)

    async def fail(self, claim: Claim, sent: Sent, *, wait: float, gone: bool) -> Claim | None:
        """Record that sending the next change failed, and release the webhook.

        The next attempt is after `wait`. The webhook is disabled if it is `gone` or has
        failed for too long. A webhook that was updated or replayed meanwhile is due at once
        and is not disabled. Returns the same as `advance`.
        """
        return await self._record(
            _FAIL,
            claim,
            [sent],
            wait=wait,
            gone=gone,
            give_up_after=self._give_up_after,
            updated_at=claim.updated_at,
        )

    async def release(self, claim: Claim, *, wait: float) -> None:
        """End the lease, if it still is this worker's. The webhook is due after `wait`."""
        await self._database.fetch_across(
            _RELEASE,
            {
                "organization_id": claim.organization_id,
                "id": claim.id,
                "fence": claim.fence,
                "wait": wait,
            },
        )

    async def trace_contexts(self, claim: Claim, *, after: int, through: int) -> dict[int, str]:
        """Return the traceparents of the sampled changes in a range of revisions."""
        found = await trace_contexts(self._database, {claim.organization_id: (after, through)})
        return {revision: context for (_, revision), context in found.items()}

    async def _record(
        self,
        statement: LiteralString,
        claim: Claim,
        sent: Sequence[Sent],
        **parameters: float | str | datetime,
    ) -> Claim | None:
        found = await self._database.fetch_across(
            statement,
            {
                "organization_id": claim.organization_id,
                "id": claim.id,
                "fence": claim.fence,
                "cursor": claim.cursor,
                "sent": _log_of(sent),
                "lease": self._lease,
                **parameters,
            },
        )
        return Claim(*found[0]) if found else None


def _log_of(sent: Sequence[Sent]) -> str:
    now = monotonic()
    return json.dumps(
        [
            {
                "revision": each.revision,
                "attempt": each.attempt,
                "seconds_ago": now - each.outcome.ended + each.outcome.seconds,
                "duration_ms": round(each.outcome.seconds * 1000),
                "http_status": each.outcome.http_status,
                "error": each.outcome.error,
            }
            for each in sent
        ]
    )
