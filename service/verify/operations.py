"""Whether operations and the positions of consumers agree with the history."""

from typing import LiteralString

from service.verify.snapshot import IN_PART

# Both statements return the columns check, organization_id, appointment_id, revision, expected,
# stored.

# A finished operation that was not refused has the revision of the appointment that it left,
# negative if the hold had expired by then. Only operations with the same idempotency key have the
# same change as their effect, and only these may have been sent with another id. A redaction erases
# such keys.
OPERATIONS: LiteralString = f"""
    WITH done AS (
        SELECT
            *,
            outcome = ANY (%(kinds)s::text []) AS effective,
            outcome IN ('UNCHANGED', 'STALE') AS without_effect,
            count(*) OVER (PARTITION BY organization_id, revision, outcome) AS sharing
        FROM operations
        WHERE {IN_PART}
    )
    SELECT
        'operation', done.organization_id, done.appointment_id, abs(done.revision),
        fault.expected, 'operation ' || done.operation_id || ' with ' || fault.stored
    FROM done
    LEFT JOIN appointment_history h
        ON h.organization_id = done.organization_id AND h.revision = abs(done.revision)
    LEFT JOIN organizations o ON o.organization_id = done.organization_id
    LEFT JOIN appointments a
        ON a.organization_id = h.organization_id
            AND a.appointment_id = h.appointment_id
            AND a.ordinal = 0
    CROSS JOIN LATERAL (
        SELECT h.idempotency_key IS NOT NULL OR a.redacted_at IS NOT NULL AS had_key
    ) AS known
    CROSS JOIN LATERAL (VALUES
        (
            (effective OR without_effect) <> (done.revision IS NOT NULL),
            CASE WHEN done.revision IS NULL THEN 'the revision of the result'
                ELSE 'no revision, as it was refused' END,
            'the outcome ' || outcome
        ),
        (
            (outcome = 'FAILED') <> (failure IS NOT NULL),
            'an error exactly if it FAILED',
            'the outcome ' || outcome || CASE WHEN failure IS NULL THEN ' without' ELSE ' and' END
                || ' an error'
        ),
        (
            done.revision IS NOT NULL AND h.revision IS NULL,
            'a change that is its result', 'the revision ' || done.revision || ' of none'
        ),
        (
            effective AND h.change <> outcome,
            'the outcome ' || h.change || ', which is the change', 'the outcome ' || outcome
        ),
        (
            h.appointment_id <> done.appointment_id
                AND NOT (effective AND had_key),
            'an effect on the appointment ' || to_json(done.appointment_id),
            'the revision of ' || to_json(h.appointment_id)
        ),
        (
            done.revision < 0 AND h.state NOT IN ('HELD', 'EXPIRED'),
            'the revision ' || abs(done.revision) || ', as the appointment was ' || h.state,
            'that of an expired hold, ' || done.revision
        ),
        (
            effective AND sharing > 1 AND NOT had_key,
            'a change that is the effect of this operation only',
            'the change of ' || sharing || ' operations'
        ),
        (
            greatest(done.organization_revision, abs(done.revision)) > coalesce(o.revision, 0),
            'at most the latest revision ' || coalesce(o.revision, 0),
            'the revision ' || greatest(done.organization_revision, abs(done.revision))
        )
    ) AS fault (found, expected, stored)
    WHERE fault.found
    UNION ALL
    SELECT
        'operation', q.organization_id, q.write ->> 'id', NULL,
        'one that is queued or finished', 'operation ' || q.operation_id || ' as both'
    FROM (SELECT * FROM queued_operations WHERE {IN_PART}) AS q
    JOIN done USING (organization_id, operation_id)
"""

# Nobody can have received a change that does not exist.
POSITIONS: LiteralString = f"""
    SELECT
        'position', position.organization_id, NULL, position.revision,
        'at most the latest revision ' || coalesce(o.revision, 0), position.name
    FROM (
        SELECT
            organization_id, cursor_revision AS revision,
            'webhook ' || to_json(webhook_id) || ' after revision ' || cursor_revision AS name
        FROM webhooks
        WHERE {IN_PART}
        UNION ALL
        SELECT
            organization_id, revision,
            'consumer ' || to_json(consumer) || ' after revision ' || revision
        FROM event_cursors
        WHERE {IN_PART}
        UNION ALL
        SELECT
            organization_id, max(revision),
            'a delivery of revision ' || max(revision) || ' to webhook ' || to_json(webhook_id)
        FROM webhook_deliveries
        WHERE {IN_PART}
        GROUP BY organization_id, webhook_id
    ) AS position
    LEFT JOIN organizations o ON o.organization_id = position.organization_id
    WHERE position.revision > coalesce(o.revision, 0)
"""
