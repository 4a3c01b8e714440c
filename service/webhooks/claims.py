"""How workers share the webhooks, and record how far each is.

Times are the database's. Whatever is recorded of a webhook needs the fence that it was
claimed with and the cursor that was recorded last: a worker that was held up beyond its
lease, or whose webhook was told to begin elsewhere, records nothing.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import LiteralString, NamedTuple

from service.postgres.database import Database
from service.webhooks.webhook import Attempt, Claim

_COLUMNS: LiteralString = """
    w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.header_names,
    w.disabled, w.cursor_revision, w.attempts, w.updated_at
"""

# Nothing else reads secrets and the values of headers. Of a row that this statement holds,
# so that they belong to the URL and the names beside them.
_WITH_SECRETS: LiteralString = """
    SELECT
        w.organization_id, w.webhook_id, w.fence, w.url, w.changes, own.live_secrets,
        w.header_names, own.header_values, w.disabled, w.cursor_revision, w.attempts,
        w.updated_at
    FROM {held} AS w
    CROSS JOIN LATERAL webhook_secrets(w.organization_id, w.webhook_id) AS own
"""

# The index gives them in the order in which they have waited, and the organization's row
# is looked up for each: neither depends on how many organizations there are.
_DUE: LiteralString = """
    SELECT w.organization_id, w.webhook_id
    FROM webhooks w
    WHERE NOT w.disabled
        AND w.attempts {attempts}
        AND w.next_attempt_at <= now()
        AND w.leased_until <= now()
        AND w.cursor_revision < (
            SELECT o.revision FROM organizations o WHERE o.organization_id = w.organization_id
        )
    ORDER BY w.next_attempt_at
    LIMIT {limit}
    FOR UPDATE OF w SKIP LOCKED
"""

_CLAIM: LiteralString = f"""
    WITH due AS MATERIALIZED ({_DUE.format(attempts="= 0", limit="%(places)s")}),
    failing AS MATERIALIZED ({_DUE.format(attempts="> 0", limit="%(failing_places)s")}),
    claimed AS (
        UPDATE webhooks w
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

# The log beside the webhook's own row, or neither.
_RECORD: LiteralString = """
    WITH recorded AS (
        UPDATE webhooks w
        SET {changes}
        WHERE {ours}
        RETURNING {columns}
    ),
    logged AS (
        INSERT INTO webhook_deliveries (
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

# A failure says nothing of what a webhook was changed to meanwhile, nor of its replay: it is
# logged, and the webhook is tried at once.
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
    UPDATE webhooks w
    SET leased_until = '-infinity',
        next_attempt_at = greatest(w.next_attempt_at, now() + make_interval(secs => %(wait)s))
    WHERE w.organization_id = %(organization_id)s
        AND w.webhook_id = %(id)s
        AND w.fence = %(fence)s
    RETURNING 1
"""


class Sent(NamedTuple):
    """A change, which attempt it was, and what came of it."""

    revision: int
    attempt: int
    outcome: Attempt


class ClaimStore:
    """Times are in seconds. Every method raises Overloaded, LockTimeout, DatabaseUnavailable."""

    def __init__(self, database: Database, *, lease: float, give_up_after: float) -> None:
        self._database = database
        self._lease = lease
        self._give_up_after = give_up_after

    async def claim(self, *, places: int, failing_places: int) -> list[Claim]:
        """Take webhooks that have something to be sent, for the time of a lease.

        Those whose last attempt failed have places of their own.
        """
        found = await self._database.fetch(
            _CLAIM, {"places": places, "failing_places": failing_places, "lease": self._lease}
        )
        return [Claim(*row) for row in found]

    async def advance(
        self, claim: Claim, sent: Sequence[Sent], *, reached: int, release: bool
    ) -> Claim | None:
        """Record that everything up to a revision was taken or passed over.

        Renews the lease, or gives it up with `release`. Returns the webhook as it is now,
        None if nothing was recorded since it is not ours any more or its cursor was moved.
        """
        return await self._record(_ADVANCE, claim, sent, reached=reached, release=release)

    async def fail(self, claim: Claim, sent: Sent, *, wait: float, gone: bool) -> Claim | None:
        """Record that sending the next change failed, and give the webhook up.

        It is tried again after `wait`, unless it was disabled: because it is `gone`, or
        has failed for too long. One that was changed or replayed meanwhile is neither made
        to wait nor disabled.
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
        """Give a webhook up, if it is still ours; nobody takes it before `wait` is over."""
        await self._database.fetch(
            _RELEASE,
            {
                "organization_id": claim.organization_id,
                "id": claim.id,
                "fence": claim.fence,
                "wait": wait,
            },
        )

    async def _record(
        self,
        statement: LiteralString,
        claim: Claim,
        sent: Sequence[Sent],
        **parameters: float | str | datetime,
    ) -> Claim | None:
        found = await self._database.fetch(
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
