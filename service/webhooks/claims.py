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

_COLUMNS: LiteralString = """
    w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.resource_id,
    w.header_names, w.disabled, w.cursor_revision, w.attempts, w.updated_at
"""

# No other statement reads secrets and header values. They are read for a row that this
# statement has locked, so that they belong to the URL and header names returned with them.
_WITH_SECRETS: LiteralString = """
    SELECT
        w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.resource_id,
        own.live_secrets, w.header_names, own.header_values, w.disabled, w.cursor_revision,
        w.attempts, w.updated_at
    FROM {held} AS w
    CROSS JOIN LATERAL webhook_secrets(w.organization_id, w.webhook_id) AS own
"""

# The index returns webhooks in the order in which they became due. The organization's row is
# looked up for each, so the cost does not depend on the number of organizations.
_DUE: LiteralString = """
    SELECT w.organization_id, w.webhook_id
    FROM public.webhooks w
    WHERE NOT w.disabled
        AND w.attempts {attempts}
        AND w.next_attempt_at <= now()
        AND w.leased_until <= now()
        AND w.cursor_revision < (
            SELECT o.revision
            FROM public.organizations o
            WHERE o.organization_id = w.organization_id
        )
    ORDER BY w.next_attempt_at
    LIMIT {limit}
    FOR UPDATE OF w SKIP LOCKED
"""

_CLAIM: LiteralString = f"""
    WITH due AS MATERIALIZED ({_DUE.format(attempts="= 0", limit="%(slots)s")}),
    failing AS MATERIALIZED ({_DUE.format(attempts="> 0", limit="%(failing_slots)s")}),
    claimed AS (
        UPDATE public.webhooks w
        SET leased_until = now() + make_interval(secs => %(lease)s), fence = w.fence + 1
        FROM (
            SELECT organization_id, webhook_id FROM due
            UNION ALL
            SELECT organization_id, webhook_id FROM failing
        ) AS chosen
        WHERE w.organization_id = chosen.organization_id AND w.webhook_id = chosen.webhook_id
        RETURNING {_COLUMNS}
    )
    {_WITH_SECRETS.format(held="claimed")}
"""

_OURS: LiteralString = """
    w.organization_id = %(organization_id)s
        AND w.webhook_id = %(id)s
        AND w.fence = %(fence)s
        AND w.cursor_revision = %(cursor)s
"""

# Updates the webhook and inserts the log entries in one statement: both or neither.
_RECORD: LiteralString = """
    WITH recorded AS (
        UPDATE public.webhooks w
        SET {changes}
        WHERE {ours}
        RETURNING {columns}
    ),
    logged AS (
        INSERT INTO public.webhook_deliveries (
            organization_id, webhook_id, revision, attempt, attempted_at, duration_ms,
            http_status, error
        )
        SELECT
            recorded.organization_id, recorded.webhook_id, sent.revision, sent.attempt,
            now() - make_interval(secs => sent.seconds_ago), sent.duration_ms,
            sent.http_status, sent.error
        FROM recorded, json_to_recordset(%(sent)s::json) AS sent (
            revision bigint, attempt integer, seconds_ago double precision,
            duration_ms integer, http_status integer, error text
        )
    )
    {result}
"""

_ADVANCE: LiteralString = _RECORD.format(
    changes="""
            cursor_revision = %(reached)s,
            attempts = 0,
            failing_since = NULL,
            leased_until = CASE
                WHEN %(release)s THEN '-infinity'
                ELSE now() + make_interval(secs => %(lease)s)
            END,
            next_attempt_at = CASE WHEN %(release)s THEN now() ELSE next_attempt_at END
    """,
    ours=_OURS,
    columns=_COLUMNS,
    result=_WITH_SECRETS.format(held="recorded"),
)

# A failure does not count against a webhook that was updated or replayed since it was
# claimed. The failure is logged, and the webhook is due at once.
_AS_CLAIMED: LiteralString = "w.updated_at = %(updated_at)s"

_FAIL: LiteralString = _RECORD.format(
    changes=f"""
            leased_until = '-infinity',
            attempts = w.attempts + CASE WHEN {_AS_CLAIMED} THEN 1 ELSE 0 END,
            failing_since = CASE
                WHEN {_AS_CLAIMED} THEN coalesce(w.failing_since, now())
                ELSE w.failing_since
            END,
            next_attempt_at = CASE
                WHEN {_AS_CLAIMED} THEN now() + make_interval(secs => %(wait)s)
                ELSE w.next_attempt_at
            END,
            disabled = w.disabled OR {_AS_CLAIMED} AND (
                %(gone)s
                OR coalesce(w.failing_since, now())
                    <= now() - make_interval(secs => %(give_up_after)s)
            ),
            disabled_reason = CASE
                WHEN w.disabled THEN w.disabled_reason
                WHEN NOT {_AS_CLAIMED} THEN ''
                WHEN %(gone)s THEN 'the receiver answered 410 Gone'
                WHEN w.failing_since <= now() - make_interval(secs => %(give_up_after)s) THEN
                    'revision ' || %(revision)s || ' could not be delivered since '
                    || to_char(w.failing_since, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                    || '; at last: ' || %(error)s
                ELSE ''
            END
    """,
    ours=_OURS,
    columns=_COLUMNS,
    result=_WITH_SECRETS.format(held="recorded"),
)

_RELEASE: LiteralString = """
    UPDATE public.webhooks w
    SET leased_until = '-infinity',
        next_attempt_at = greatest(w.next_attempt_at, now() + make_interval(secs => %(wait)s))
    WHERE w.organization_id = %(organization_id)s
        AND w.webhook_id = %(id)s
        AND w.fence = %(fence)s
    RETURNING 1
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
            revision=str(sent.revision),
            error=sent.outcome.error,
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
