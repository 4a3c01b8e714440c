"""Whether the history is possible: without gaps, and each change one that can follow the last."""

from typing import LiteralString

from service.verify.snapshot import IN_PART

# Every statement returns the columns check, organization_id, appointment_id, revision, expected,
# stored.

# The revisions of an organization, and the times at which they were recorded.
REVISIONS: LiteralString = f"""
    WITH entry AS (
        SELECT
            organization_id, appointment_id, revision, recorded_at,
            coalesce(lag(revision) OVER by_revision, 0) + 1 AS next,
            lag(recorded_at) OVER by_revision AS recorded_before
        FROM appointment_history
        WHERE {IN_PART}
        WINDOW by_revision AS (PARTITION BY organization_id ORDER BY revision)
    )
    SELECT
        fault.name, entry.organization_id, entry.appointment_id, entry.revision,
        fault.expected, fault.stored
    FROM entry
    CROSS JOIN LATERAL (VALUES
        ('gap', revision <> next, 'revision ' || next, 'revision ' || revision),
        (
            'recorded-time', recorded_at < recorded_before,
            'recorded at or after ' || recorded_before, recorded_at::text
        )
    ) AS fault (name, found, expected, stored)
    WHERE (revision <> next OR recorded_at < recorded_before) AND fault.found
"""

# The latest revision, which `organizations` has too.
LATEST: LiteralString = f"""
    SELECT
        'latest-revision', coalesce(o.organization_id, last.organization_id), NULL,
        coalesce(last.revision, o.revision),
        coalesce(last.revision || ', recorded at ' || last.recorded_at, 'none, as without changes'),
        coalesce(o.revision || ', recorded at ' || o.recorded_at, 'none')
    FROM (SELECT * FROM organizations WHERE {IN_PART}) AS o
    FULL JOIN (
        SELECT DISTINCT ON (organization_id) organization_id, revision, recorded_at
        FROM appointment_history
        WHERE {IN_PART}
        ORDER BY organization_id, revision DESC
    ) AS last ON last.organization_id = o.organization_id
    WHERE (o.revision, o.recorded_at) IS DISTINCT FROM (last.revision, last.recorded_at)
"""

# Each change next to the one before it of the same appointment. Earlier versions did not record
# the resources that a change left, and recorded every change as one that gave a place. The
# entries from before the first that they could not have recorded are allowed that.
CHANGES: LiteralString = f"""
    WITH entry AS (
        SELECT
            organization_id, appointment_id, revision, change, recorded_at, version, state,
            resource_id, additional_resource_ids, released_resource_ids, start_time, end_time,
            title, attributes::text AS attributes, created_at, updated_at, hold_until, placed,
            lag(version) OVER earlier AS version_before,
            lag(state) OVER earlier AS state_before,
            lag(resource_id) OVER earlier AS resource_id_before,
            lag(additional_resource_ids) OVER earlier AS additional_before,
            lag(start_time) OVER earlier AS start_before,
            lag(end_time) OVER earlier AS end_before,
            lag(title) OVER earlier AS title_before,
            lag(attributes::text) OVER earlier AS attributes_before,
            lag(created_at) OVER earlier AS created_before,
            lag(updated_at) OVER earlier AS updated_before,
            lag(hold_until) OVER earlier AS hold_before,
            actor, idempotency_key IS NOT NULL AS keyed,
            max(revision) FILTER (WHERE change = ANY (%(erasing)s::text [])) OVER (
                PARTITION BY organization_id, appointment_id
            ) AS erased_by
        FROM appointment_history
        WHERE {IN_PART}
        WINDOW earlier AS (PARTITION BY organization_id, appointment_id ORDER BY revision)
    ),
    modern AS (
        SELECT organization_id, min(revision) AS revision
        FROM appointment_history
        WHERE {IN_PART} AND (
            NOT placed OR hold_until IS NOT NULL OR additional_resource_ids IS NOT NULL
            OR released_resource_ids IS NOT NULL
        )
        GROUP BY organization_id
    ),
    compared AS (
        SELECT
            entry.*,
            modern.revision <= entry.revision AS modern,
            change || ':' || coalesce(state_before, '') || ':' || state AS transition,
            (resource_id, start_time, end_time) IS DISTINCT FROM
                (resource_id_before, start_before, end_before)
                OR additional_resource_ids IS DISTINCT FROM additional_before AS moved
        FROM entry
        LEFT JOIN modern USING (organization_id)
    ),
    judged AS (
        SELECT
            compared.*,
            version <> coalesce(version_before, 0) + 1 AS wrong_version,
            transition <> ALL (%(transitions)s::text []) AS wrong_transition,
            start_time >= end_time OR NOT isfinite(start_time) OR NOT isfinite(end_time)
                AS wrong_range,
            CASE state WHEN 'ACTIVE' THEN hold_until IS NOT NULL WHEN 'CANCELLED' THEN false
                ELSE hold_until IS NULL END AS wrong_hold,
            change = ANY (%(keeping)s::text []) AND (
                moved
                OR (title, attributes, created_at, updated_at) IS DISTINCT FROM
                    (title_before, attributes_before, created_before, updated_before)
                OR state <> 'ACTIVE' AND hold_until IS DISTINCT FROM hold_before
            ) AS wrong_content,
            state_before = 'HELD' AND (
                change = 'EXPIRED' AND hold_before > recorded_at
                OR change IN ('CONFIRMED', 'CANCELLED') AND hold_before <= recorded_at
            ) AS wrong_expiry,
            moved AND NOT placed OR placed AND NOT moved AND modern AS wrong_place,
            revision < erased_by AND (
                title <> '' OR attributes <> '{{}}'
                OR change <> ALL (%(erasing)s::text []) AND (actor <> '' OR keyed)
            ) AS wrong_erasure,
            -- A redaction reaches the followers of all resources that the appointment ever had.
            CASE WHEN change = 'REDACTED' THEN ARRAY(
                SELECT DISTINCT ever.resource_id COLLATE "C"
                FROM appointment_history h
                CROSS JOIN LATERAL unnest(
                    array_prepend(h.resource_id, h.additional_resource_ids)
                ) AS ever (resource_id)
                WHERE h.organization_id = compared.organization_id
                    AND h.appointment_id = compared.appointment_id
                    AND h.revision < compared.revision
                    AND ever.resource_id <> ALL (
                        array_prepend(compared.resource_id, compared.additional_resource_ids)
                    )
                ORDER BY 1
            ) WHEN change <> ALL (%(keeping)s::text []) AND state_before IS NOT NULL AND (
                resource_id <> resource_id_before
                OR additional_resource_ids IS DISTINCT FROM additional_before
            ) THEN ARRAY(
                SELECT before.resource_id COLLATE "C"
                FROM unnest(array_prepend(resource_id_before, additional_before))
                    AS before (resource_id)
                WHERE before.resource_id <> ALL (
                    array_prepend(compared.resource_id, additional_resource_ids)
                )
                ORDER BY 1
            ) ELSE '{{}}' END AS left_resource_ids,
            CASE WHEN released_resource_ids IS NULL THEN '{{}}' ELSE ARRAY(
                SELECT released.resource_id COLLATE "C"
                FROM unnest(released_resource_ids) AS released (resource_id)
                ORDER BY 1
            ) END AS released
        FROM compared
    )
    SELECT
        fault.name, judged.organization_id, judged.appointment_id, judged.revision,
        fault.expected, fault.stored
    FROM judged
    CROSS JOIN LATERAL (VALUES
        (
            'version', wrong_version,
            'version ' || coalesce(version_before, 0) + 1, 'version ' || version
        ),
        (
            'transition', wrong_transition,
            'a change that is possible '
                || coalesce('in the state ' || state_before, 'without an earlier one'),
            change || ' to ' || state
        ),
        (
            'range', wrong_range, 'a start before the end, both finite',
            start_time || ' to ' || end_time
        ),
        (
            'hold', wrong_hold,
            CASE WHEN hold_until IS NULL THEN 'an end of the hold' ELSE 'no end of a hold' END,
            coalesce(hold_until::text, 'none') || ' in the state ' || state
        ),
        (
            'content', wrong_content,
            'nothing but the state changed by ' || change,
            'another ' || concat_ws(
                ', ',
                CASE WHEN (resource_id, additional_resource_ids) IS DISTINCT FROM
                    (resource_id_before, additional_before) THEN 'resource' END,
                CASE WHEN start_time IS DISTINCT FROM start_before THEN 'start_time' END,
                CASE WHEN end_time IS DISTINCT FROM end_before THEN 'end_time' END,
                CASE WHEN title IS DISTINCT FROM title_before THEN 'title' END,
                CASE WHEN attributes IS DISTINCT FROM attributes_before THEN 'attributes' END,
                CASE WHEN created_at IS DISTINCT FROM created_before THEN 'created_at' END,
                CASE WHEN updated_at IS DISTINCT FROM updated_before THEN 'updated_at' END,
                CASE WHEN state <> 'ACTIVE' AND hold_until IS DISTINCT FROM hold_before
                    THEN 'hold_until' END
            )
        ),
        (
            'expiry', wrong_expiry,
            CASE WHEN change = 'EXPIRED' THEN 'EXPIRED recorded at or after the end of the hold, '
                ELSE change || ' recorded before the end of the hold, ' END || hold_before,
            'recorded at ' || recorded_at
        ),
        (
            'erased', wrong_erasure, 'what the redaction of revision ' || erased_by || ' has left',
            concat_ws(
                ', ',
                CASE WHEN title <> '' THEN 'a title' END,
                CASE WHEN attributes <> '{{}}' THEN 'attributes' END,
                CASE WHEN actor <> '' THEN 'an actor' END,
                CASE WHEN keyed THEN 'an idempotency key' END
            )
        ),
        ('placed', wrong_place, 'placed ' || moved, 'placed ' || placed),
        (
            'released', left_resource_ids <> released AND (modern OR released <> '{{}}'),
            'released ' || left_resource_ids::text, 'released ' || released::text
        )
    ) AS fault (name, found, expected, stored)
    WHERE (
        wrong_version OR wrong_transition OR wrong_range OR wrong_hold OR wrong_content
        OR wrong_expiry OR wrong_place OR wrong_erasure OR left_resource_ids <> released
    ) AND fault.found
"""
