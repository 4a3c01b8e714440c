-- The current functions. Edit them here, then run `make migration NAME=what_changes`, which
-- writes the migration that replaces the functions of a database with these. A test compares
-- this file with a migrated database. Names are unique, without overloading.
--
-- Plans are fixed (docs/decisions/0007-plans-are-fixed.md): most functions set planner options,
-- and their queries have the order of the one index that should be used.
--
-- A transaction can be for one organization (docs/decisions/0022-organizations-are-views.md).
-- Functions for one organization refuse to work in a transaction for another one. Those that
-- apply writes use the tables, as the views would make them slower. The others have
-- `search_path = own, public`, so that their unqualified tables are the views of the schema `own`.
-- The functions for several organizations refuse to work in a transaction for one.
--
-- All but a few of them also run in a database that is distributed by organization (docs/scaling.md).
-- So a statement on tables names one organization, calls no function that reads tables, and selects
-- a column; functions that read tables are in PL/pgSQL, whose plans know the organization.
-- migrations/citus.sql has the others in another form. A test fails if one of them changes here alone.

-- The organization of a transaction

-- Raise an error if the transaction is for another organization.
CREATE FUNCTION check_organization(p_organization_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) NOT IN ('', p_organization_id) THEN
        RAISE EXCEPTION 'a statement for the organization % names the organization %',
            current_setting('appointments.organization', true), p_organization_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION check_organization FROM PUBLIC;

-- Make the transaction one for an organization. Returns false if it was that before. Raises an
-- error if it is for another one.
CREATE FUNCTION enter_organization(p_organization_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) = p_organization_id THEN
        RETURN false;
    END IF;
    PERFORM check_organization(p_organization_id);
    PERFORM set_config('appointments.organization', p_organization_id, true);
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION enter_organization FROM PUBLIC;

-- Make the transaction one for no organization again, if enter_organization returned true.
CREATE FUNCTION leave_organization(p_entered boolean)
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF p_entered THEN
        PERFORM set_config('appointments.organization', '', true);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION leave_organization FROM PUBLIC;

-- Raise an error if the transaction is for one organization. The calling function is for several.
CREATE FUNCTION require_no_organization()
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) <> '' THEN
        RAISE EXCEPTION 'a statement for the organization % calls a function for several',
            current_setting('appointments.organization', true)
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION require_no_organization FROM PUBLIC;
GRANT EXECUTE ON FUNCTION require_no_organization TO appointments_service, appointments_caller;

-- Writes

-- Return the key of an organization's advisory lock, which every write holds. The seed
-- separates these keys from other uses of 64-bit advisory locks. It has no SET clause, which
-- would prevent inlining.
CREATE FUNCTION organization_lock_key(p_organization_id text)
RETURNS bigint
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN hashtextextended(p_organization_id, 7236001);

REVOKE ALL ON FUNCTION organization_lock_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION organization_lock_key TO appointments_service, appointments_caller;

-- Return whether no session writes the organization. Waits for none, and keeps none waiting for longer
-- than the calling statement takes.
CREATE FUNCTION no_write_in_progress(p_organization_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM check_organization(p_organization_id);
    RETURN pg_try_advisory_xact_lock_shared(organization_lock_key(p_organization_id));
END
$$;

REVOKE ALL ON FUNCTION no_write_in_progress FROM PUBLIC;
GRANT EXECUTE ON FUNCTION no_write_in_progress TO appointments_service, appointments_caller;

-- Return the appointments that occupy a resource in a range, except those of p_except_ids, as a
-- JSON array of at most 21, ordered by start. Each one names the resources that it shares. Holds
-- that have expired by p_now occupy nothing. Ranges of a resource do not overlap, so of the
-- appointments that start before the range only the last one can overlap it.
CREATE FUNCTION conflicting_appointments(
    p_organization_id text,
    p_resource_ids text [],
    p_except_ids text [],
    p_start_time timestamptz,
    p_end_time timestamptz,
    p_now timestamptz
)
RETURNS json
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    v_conflicts json;
BEGIN
    SELECT json_agg(
        json_build_object(
            'id', found.appointment_id,
            'start', found.start_time,
            'end', found.end_time,
            'version', found.version,
            'resource_ids', found.resource_ids
        ) ORDER BY found.start_time, found.appointment_id
    )
    INTO v_conflicts
    FROM (
        SELECT
            candidate.appointment_id,
            candidate.start_time,
            candidate.end_time,
            main.version,
            array_agg(wanted.resource_id ORDER BY wanted.place) AS resource_ids
        FROM unnest(p_resource_ids) WITH ORDINALITY AS wanted (resource_id, place)
        CROSS JOIN LATERAL (
            (
                SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.hold_until
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND (a.resource_id, a.start_time) < (wanted.resource_id, p_start_time)
                    AND a.state IN ('ACTIVE', 'HELD')
                ORDER BY a.resource_id DESC, a.start_time DESC
                LIMIT 1
            )
            UNION ALL
            (
                SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.hold_until
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.resource_id = wanted.resource_id
                    AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > p_now)
                    AND a.appointment_id <> ALL (p_except_ids)
                    AND a.start_time >= p_start_time
                    AND a.start_time < p_end_time
                ORDER BY a.start_time
                LIMIT 21
            )
        ) AS candidate
        -- Only the first row of an appointment has its version.
        CROSS JOIN LATERAL (
            SELECT m.version
            FROM appointments m
            WHERE m.organization_id = p_organization_id
                AND m.appointment_id BETWEEN candidate.appointment_id AND candidate.appointment_id
                AND m.ordinal = 0
            ORDER BY m.appointment_id
        ) AS main
        WHERE candidate.resource_id = wanted.resource_id
            AND candidate.end_time > p_start_time
            AND (candidate.hold_until IS NULL OR candidate.hold_until > p_now)
            AND candidate.appointment_id <> ALL (p_except_ids)
        GROUP BY
            candidate.appointment_id, candidate.start_time, candidate.end_time, main.version
        ORDER BY candidate.start_time, candidate.appointment_id
        LIMIT 21
    ) AS found;
    RETURN v_conflicts;
END
$$;

REVOKE ALL ON FUNCTION conflicting_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION conflicting_appointments TO appointments_service;

-- Return the conflicts of a single write of apply_writes that the exclusion constraint refused,
-- as conflicting_appointments does. An update leaves the fields that it does not name as stored.
CREATE FUNCTION conflicts_of_write(p_organization_id text, p_write json)
RETURNS json
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_conflicts json;
    v_resource_id text;
    v_additional_resource_ids text [];
    v_start_time timestamptz;
    v_end_time timestamptz;
    w record;
BEGIN
    SELECT * INTO w
    FROM json_to_record(p_write) AS r (
        id text,
        resource_id text,
        additional_resource_ids text [],
        start_time timestamptz,
        end_time timestamptz,
        fields text []
    );
    SELECT a.resource_id, a.additional_resource_ids, a.start_time, a.end_time
    INTO v_resource_id, v_additional_resource_ids, v_start_time, v_end_time
    FROM appointments a
    WHERE a.organization_id = p_organization_id AND a.appointment_id = w.id AND a.ordinal = 0;
    -- An update that creates has all fields.
    IF NOT FOUND THEN
        w.fields := NULL;
    END IF;
    v_conflicts := conflicting_appointments(
        p_organization_id,
        array_prepend(
            CASE WHEN 'resource_id' <> ALL (w.fields) THEN v_resource_id ELSE w.resource_id END,
            CASE WHEN 'additional_resource_ids' <> ALL (w.fields)
                THEN v_additional_resource_ids ELSE w.additional_resource_ids END
        ),
        ARRAY[w.id],
        CASE WHEN 'start' <> ALL (w.fields) THEN v_start_time ELSE w.start_time END,
        CASE WHEN 'end' <> ALL (w.fields) THEN v_end_time ELSE w.end_time END,
        clock_timestamp()
    );
    PERFORM leave_organization(v_entered);
    RETURN v_conflicts;
END
$$;

REVOKE ALL ON FUNCTION conflicts_of_write FROM PUBLIC;
GRANT EXECUTE ON FUNCTION conflicts_of_write TO appointments_service, appointments_caller;

-- Return the next free ranges that are as long as a wanted one and start at or after it, within
-- 31 days: at most p_most, as a JSON array of {"start", "end"}, ordered by start. They do not
-- overlap each other. All resources are free in them, apart from what p_except_id occupies.
CREATE FUNCTION alternative_ranges(
    p_organization_id text,
    p_resource_ids text [],
    p_except_id text,
    p_start_time timestamptz,
    p_end_time timestamptz,
    p_now timestamptz,
    p_most integer
)
RETURNS json
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
-- A day of an interval has 24 hours.
SET timezone = 'UTC'
AS $$
DECLARE
    c_duration constant interval := p_end_time - p_start_time;
    -- The last range may start after 31 days; a range must not end after the year 9999.
    c_latest constant timestamptz := least(
        p_start_time + interval '31 days' + (p_end_time - p_start_time),
        timestamptz '9999-12-31 23:59:59.999999+00'
    );
    v_occupied tstzmultirange;
BEGIN
    SELECT coalesce(range_agg(tstzrange(candidate.start_time, candidate.end_time)), '{}')
    INTO v_occupied
    FROM unnest(p_resource_ids) AS wanted (resource_id)
    CROSS JOIN LATERAL (
        (
            SELECT a.resource_id, a.start_time, a.end_time
            FROM appointments a
            WHERE a.organization_id = p_organization_id
                AND (a.resource_id, a.start_time) < (wanted.resource_id, p_start_time)
                AND a.state IN ('ACTIVE', 'HELD')
                AND (a.hold_until IS NULL OR a.hold_until > p_now)
                AND a.appointment_id <> p_except_id
            ORDER BY a.resource_id DESC, a.start_time DESC
            LIMIT 1
        )
        UNION ALL
        (
            SELECT a.resource_id, a.start_time, a.end_time
            FROM appointments a
            WHERE a.organization_id = p_organization_id
                AND a.resource_id = wanted.resource_id
                AND a.state IN ('ACTIVE', 'HELD')
                AND (a.hold_until IS NULL OR a.hold_until > p_now)
                AND a.appointment_id <> p_except_id
                AND a.start_time >= p_start_time
                AND a.start_time < c_latest
        )
    ) AS candidate
    WHERE candidate.resource_id = wanted.resource_id;
    RETURN (
        SELECT json_agg(
            json_build_object('start', offered.start_time, 'end', offered.start_time + c_duration)
            ORDER BY offered.start_time
        )
        FROM (
            SELECT lower(free.gap) + place.number * c_duration AS start_time
            FROM unnest(tstzmultirange(tstzrange(p_start_time, c_latest)) - v_occupied)
                AS free (gap)
            CROSS JOIN LATERAL generate_series(
                0,
                least(
                    p_most,
                    floor(
                        extract(epoch FROM upper(free.gap) - lower(free.gap))
                        / extract(epoch FROM c_duration)
                    )
                )::integer - 1
            ) AS place (number)
            ORDER BY 1
            LIMIT p_most
        ) AS offered
    );
END
$$;

REVOKE ALL ON FUNCTION alternative_ranges FROM PUBLIC;
GRANT EXECUTE ON FUNCTION alternative_ranges TO appointments_service;

-- Merge a patch into JSON by the rules of RFC 7396: null removes a member. The result is
-- canonical like its parameters: compact, with sorted keys, and numbers keep their text.
CREATE FUNCTION merge_json(p_target json, p_patch json)
RETURNS json
LANGUAGE plpgsql
IMMUTABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    v_target json := CASE WHEN json_typeof(p_target) = 'object' THEN p_target ELSE '{}' END;
BEGIN
    IF json_typeof(p_patch) <> 'object' THEN
        RETURN p_patch;
    END IF;
    RETURN (
        SELECT concat(
            '{',
            string_agg(
                to_json(member.key)::text || ':' || member.value::text, ','
                ORDER BY member.key COLLATE "C"
            ),
            '}'
        )::json
        FROM (
            SELECT before.key, before.value
            FROM json_each(v_target) AS before
            WHERE before.key NOT IN (SELECT json_object_keys(p_patch))
            UNION ALL
            SELECT patch.key, merge_json(before.value, patch.value)
            FROM json_each(p_patch) AS patch
            LEFT JOIN json_each(v_target) AS before ON before.key = patch.key
            WHERE json_typeof(patch.value) <> 'null'
        ) AS member
    );
END
$$;

REVOKE ALL ON FUNCTION merge_json FROM PUBLIC;

-- For programs of the previous version, which call it for a single resource.
CREATE FUNCTION overlapping_appointments(
    p_organization_id text,
    p_resource_id text,
    p_except_id text,
    p_start_time timestamptz,
    p_end_time timestamptz
)
RETURNS json
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    v_conflicts json;
BEGIN
    SELECT json_agg(
        json_build_object(
            'id', found.appointment_id,
            'start', found.start_time,
            'end', found.end_time,
            'version', found.version
        ) ORDER BY found.start_time
    )
    INTO v_conflicts
    FROM (
        SELECT candidate.appointment_id, candidate.start_time, candidate.end_time, candidate.version
        FROM (
            (
                SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.version
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND (a.resource_id, a.start_time) < (p_resource_id, p_start_time)
                    AND a.state = 'ACTIVE'
                    AND a.appointment_id <> p_except_id
                ORDER BY a.resource_id DESC, a.start_time DESC
                LIMIT 1
            )
            UNION ALL
            (
                SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.version
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.resource_id = p_resource_id
                    AND a.state = 'ACTIVE'
                    AND a.appointment_id <> p_except_id
                    AND a.start_time >= p_start_time
                    AND a.start_time < p_end_time
                ORDER BY a.start_time
                LIMIT 21
            )
        ) AS candidate
        WHERE candidate.resource_id = p_resource_id AND candidate.end_time > p_start_time
        ORDER BY candidate.start_time
        LIMIT 21
    ) AS found;
    RETURN v_conflicts;
END
$$;

REVOKE ALL ON FUNCTION overlapping_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION overlapping_appointments TO appointments_service;

-- Return a write of a queue, or one that failed, without title, attributes and actor. apply_writes
-- applies it with what is left.
CREATE FUNCTION redacted_write(p_write json)
RETURNS json
LANGUAGE sql
IMMUTABLE
SET search_path = public, pg_temp
AS $$
    SELECT json_object_agg(member.key, member.value)
    FROM (
        SELECT
            w.key,
            CASE w.key WHEN 'title' THEN '""' WHEN 'attributes' THEN '{}' WHEN 'actor' THEN '""'
                ELSE w.value END AS value
        FROM json_each(p_write) AS w
        WHERE w.key NOT IN ('attributes_patch', 'redacted')
        UNION ALL
        SELECT 'redacted', 'true'
    ) AS member
$$;

REVOKE ALL ON FUNCTION redacted_write FROM PUBLIC;

-- Return whether the history of an appointment has anything that a redaction erases. The key of a
-- redaction itself is kept.
CREATE FUNCTION is_to_redact(p_organization_id text, p_appointment_id text)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
SET enable_seqscan = off
SET enable_sort = off
AS $$
BEGIN
    PERFORM 1
    FROM appointment_history h
    WHERE h.organization_id = p_organization_id
        AND h.appointment_id BETWEEN p_appointment_id AND p_appointment_id
        AND h.change <> 'REDACTED'
        AND (
            h.title <> ''
            OR h.attributes::text <> '{}'
            OR h.actor <> ''
            OR h.idempotency_key IS NOT NULL
        )
    LIMIT 1;
    RETURN FOUND;
END
$$;

REVOKE ALL ON FUNCTION is_to_redact FROM PUBLIC;

-- Erase title, attributes, actors and idempotency keys of an appointment wherever they are stored,
-- the redactions' own keys in the history excepted. Only apply_writes calls it, under the
-- organization's lock. Nothing else ever changes the history.
--
-- p_accepted_at: when the redaction was accepted, if it comes from a queue. What was accepted before
-- it has been applied then, and what is still queued came later. Otherwise the queued writes of the
-- appointment are redacted too.
CREATE FUNCTION erase_appointment(
    p_organization_id text,
    p_appointment_id text,
    p_now timestamptz,
    p_accepted_at timestamptz
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    v_unchanged text [];
    v_keys text [];
    c_first constant bigint := first_queued_sequence();
BEGIN
    UPDATE appointments a
    SET title = '',
        attributes = '{}',
        redacted_at = greatest(a.redacted_at, coalesce(p_accepted_at, p_now)),
        redacted_updated_at = greatest(
            a.redacted_updated_at,
            a.cancel_updated_at,
            CASE WHEN a.updated_at_given THEN a.updated_at END
        )
    WHERE a.organization_id = p_organization_id
        AND a.appointment_id BETWEEN p_appointment_id AND p_appointment_id
        AND a.ordinal = 0;

    -- A key that was used stays so, but not its text.
    SELECT array_agg(u.idempotency_key) INTO v_unchanged
    FROM appointment_history h
    JOIN unchanged_writes u
        ON u.organization_id = p_organization_id AND abs(u.revision) = h.revision
    WHERE h.organization_id = p_organization_id
        AND h.appointment_id BETWEEN p_appointment_id AND p_appointment_id;
    SELECT array_agg(h.idempotency_key) INTO v_keys
    FROM appointment_history h
    WHERE h.organization_id = p_organization_id
        AND h.appointment_id BETWEEN p_appointment_id AND p_appointment_id
        AND h.change <> 'REDACTED'
        AND h.idempotency_key IS NOT NULL;
    DELETE FROM unchanged_writes u
    WHERE u.organization_id = p_organization_id AND u.idempotency_key = ANY (v_unchanged);
    INSERT INTO erased_keys (organization_id, key_digest)
    SELECT p_organization_id, sha256(convert_to(used.idempotency_key, 'UTF8'))
    FROM unnest(v_unchanged || v_keys) AS used (idempotency_key)
    ON CONFLICT DO NOTHING;

    UPDATE appointment_history h
    SET title = '',
        attributes = '{}',
        actor = '',
        idempotency_key = NULL,
        idempotency_digest = NULL
    WHERE h.organization_id = p_organization_id
        AND h.appointment_id BETWEEN p_appointment_id AND p_appointment_id
        AND h.change <> 'REDACTED'
        AND (
            h.title <> ''
            OR h.attributes::text <> '{}'
            OR h.actor <> ''
            OR h.idempotency_key IS NOT NULL
        );

    -- The message of a failure can quote the write.
    UPDATE operations o
    SET write = redacted_write(o.write),
        failure = 'the appointment was redacted since'
    WHERE o.organization_id = p_organization_id
        AND o.appointment_id = p_appointment_id
        AND o.write IS NOT NULL;

    IF p_accepted_at IS NULL THEN
        UPDATE queued_operations q
        SET write = redacted_write(q.write)
        WHERE q.organization_id = p_organization_id
            AND q.sequence >= c_first
            AND q.write ->> 'id' = p_appointment_id
            AND q.write ->> 'kind' <> 'REDACT';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION erase_appointment FROM PUBLIC;

-- Apply a batch of writes of one organization, in order, and return one row for each write.
-- Each write sees those before it. There is no other way to change an appointment.
--
-- The function first takes the organization's advisory lock, which is held to the end of the
-- transaction. Every later statement has a new snapshot, so it sees everything that earlier
-- holders committed. This is true in READ COMMITTED only: other isolation levels are refused.
--
-- writes: a JSON array of objects with the columns of the record below. The caller has
-- validated the fields. kind: UPSERT, UPDATE (changes only the columns that fields names, and
-- merges attributes_patch), CONFIRM, CANCEL, REDACT (erases title, attributes, actors and keys of the
-- appointment and its history), or EXPIRE (records that a hold has expired). An expected_revision of 0 means any stored revision; a negative one is that of an appointment that
-- has expired. max_hold is in seconds. The updated_at of a cancel is stored as
-- cancel_updated_at. redacted: the write was accepted before a redaction of its appointment, and is
-- applied without what that has erased. accepted_at: when a redaction of a queue was accepted.
-- trace: the W3C traceparent of the call, which is stored with the change.
--
-- outcome: the effect of the write (CREATED, UPDATED, UNCHANGED, STALE, CONFIRMED, EXPIRED,
-- CANCELLED, REDACTED), or the reason of its refusal (APPOINTMENT_NOT_FOUND, APPOINTMENT_EXISTS,
-- ETAG_MISMATCH, IDEMPOTENCY_KEY_REUSED, APPOINTMENT_CANCELLED, HOLD_EXPIRED, APPOINTMENT_FIRM,
-- TIME_RANGE_CONFLICT; invalid by the time of the database: HOLD_UNTIL_INVALID; invalid together
-- with what is stored: RANGE_INVALID, RESOURCES_INVALID, ATTRIBUTES_INVALID). conflicts: for
-- TIME_RANGE_CONFLICT, a JSON array of at most 21. alternatives: the free ranges that suggest
-- asks for. appointment: the stored row after a write that was not refused. A write that
-- repeats an earlier one with the same idempotency key gets the earlier outcome and
-- appointment; columns that the history does not have are NULL then. A key that a redaction has
-- erased counts as that of another write.
--
-- A hold occupies its range until hold_until, compared with the database's clock under the lock.
-- From then on it counts as EXPIRED. The row says so only after a change of its own, which is
-- recorded before the change of the write that needs the place or the id.
--
-- If the function does not see an overlap (with hand-written SQL in an open transaction), the
-- whole call fails with the exclusion constraint's error. Without p_check_overlap, only the
-- constraint refuses overlaps.
CREATE FUNCTION apply_writes(
    p_organization_id text, p_writes json, p_check_overlap boolean DEFAULT true
)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    -- RETURN NEXT returns them.
    v_outcome ALIAS FOR outcome;
    v_revision ALIAS FOR organization_revision;
    stored ALIAS FOR appointment;
    v_recorded_at timestamptz;
    v_first_revision bigint;
    v_exists boolean;
    -- Whether the appointment occupies several resources, before or after the write.
    v_several boolean;
    -- Whether there is a change with a revision of its own, and whether anything else is stored.
    v_changed boolean;
    v_noted boolean;
    v_placed boolean;
    -- The resources that the write leaves; of a redaction, all that the appointment had before.
    v_released text [];
    -- The holds that have expired and that the write needs to be recorded as such.
    v_due text [];
    -- A resource, and the end of the time in which it is searched for appointments.
    v_resource_id text;
    v_before timestamptz;
    w record;
    neighbour record;
    keyed appointment_history%ROWTYPE;
    unchanged unchanged_writes%ROWTYPE;
    -- The latest updated_at that callers sent for the stored appointment, including that of a
    -- cancel; NULL if they sent none. A write with an older one is stale.
    v_guard timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    PERFORM check_organization(p_organization_id);
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT o.revision, greatest(o.recorded_at, clock_timestamp())
    INTO v_revision, v_recorded_at
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    IF NOT FOUND THEN
        v_revision := 0;
        v_recorded_at := clock_timestamp();
    END IF;
    v_first_revision := v_revision;

    <<each_write>>
    FOR w IN
        SELECT *
        FROM json_to_recordset(p_writes) AS r (
            kind text,
            id text,
            resource_id text,
            additional_resource_ids text [],
            start_time timestamptz,
            end_time timestamptz,
            title text,
            attributes json,
            created_at timestamptz,
            updated_at timestamptz,
            hold_until timestamptz,
            max_hold double precision,
            fields text [],
            attributes_patch json,
            allow_missing boolean,
            expected_revision bigint,
            create_only boolean,
            idempotency_key text,
            idempotency_digest text,
            actor text,
            validate_only boolean,
            suggest integer,
            redacted boolean,
            accepted_at timestamptz,
            trace text
        )
    LOOP
        v_outcome := NULL;
        v_due := NULL;
        v_released := NULL;
        v_changed := false;
        v_noted := false;
        v_placed := false;

        IF w.redacted THEN
            w.title := '';
            w.attributes := '{}';
            w.attributes_patch := NULL;
            w.actor := '';
        END IF;

        IF w.idempotency_key IS NOT NULL THEN
            SELECT h.* INTO keyed
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.idempotency_key = w.idempotency_key;
            IF NOT FOUND THEN
                SELECT u.* INTO unchanged
                FROM unchanged_writes u
                WHERE u.organization_id = p_organization_id AND u.idempotency_key = w.idempotency_key;
                IF FOUND THEN
                    SELECT h.* INTO keyed
                    FROM appointment_history h
                    WHERE h.organization_id = p_organization_id
                        AND h.revision BETWEEN abs(unchanged.revision) AND abs(unchanged.revision)
                    ORDER BY h.revision;
                    IF unchanged.revision < 0 THEN
                        keyed.state := 'EXPIRED';
                    END IF;
                    keyed.change := unchanged.outcome;
                    keyed.idempotency_digest := unchanged.idempotency_digest;
                END IF;
            END IF;
            IF FOUND THEN
                IF keyed.idempotency_digest = decode(w.idempotency_digest, 'hex') THEN
                    -- Copies columns by name. It is slow, but such retries are rare.
                    stored := json_populate_record(NULL::appointments, row_to_json(keyed));
                    v_outcome := keyed.change;
                    RETURN NEXT;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            ELSE
                PERFORM 1 FROM erased_keys e
                WHERE e.organization_id = p_organization_id
                    AND e.key_digest = sha256(convert_to(w.idempotency_key, 'UTF8'));
                IF FOUND THEN
                    v_outcome := 'IDEMPOTENCY_KEY_REUSED';
                END IF;
            END IF;
        END IF;

        -- The order makes the planner use the primary key. With an equality, another index can
        -- have the same estimated cost. The first row is that of ordinal 0. A condition on it
        -- would make PostgreSQL prepare a skip scan.
        SELECT a.* INTO stored
        FROM appointments a
        WHERE a.organization_id = p_organization_id AND a.appointment_id BETWEEN w.id AND w.id
        ORDER BY a.appointment_id, a.ordinal;
        v_exists := FOUND;
        v_several := coalesce(stored.additional_resource_ids, w.additional_resource_ids) IS NOT NULL;
        IF stored.hold_until <= v_recorded_at AND stored.state = 'HELD' THEN
            stored.state := 'EXPIRED';
            v_due := ARRAY[w.id];
        END IF;

        -- Most writes have no conditions.
        IF v_outcome IS NULL AND (
            w.expected_revision IS NOT NULL
            OR w.create_only
            OR w.updated_at IS NOT NULL
            OR w.hold_until IS NOT NULL
            OR w.kind <> 'UPSERT' AND (w.kind = 'UPDATE' OR NOT v_exists)
        ) THEN
            IF w.attributes_patch IS NOT NULL THEN
                w.attributes := merge_json(
                    CASE WHEN v_exists THEN stored.attributes ELSE w.attributes END,
                    w.attributes_patch
                );
            END IF;
            IF v_exists OR w.allow_missing IS NOT TRUE THEN
                -- Times that an update does not name are not given, unless it creates.
                IF 'created_at' <> ALL (w.fields) THEN
                    w.created_at := NULL;
                END IF;
                IF 'updated_at' <> ALL (w.fields) THEN
                    w.updated_at := NULL;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := NULL;
                END IF;
            END IF;
            v_guard := coalesce(
                stored.cancel_updated_at, CASE WHEN stored.updated_at_given THEN stored.updated_at END
            );
            IF w.hold_until <= v_recorded_at
                OR w.hold_until > v_recorded_at + make_interval(secs => w.max_hold) THEN
                v_outcome := 'HOLD_UNTIL_INVALID';
            ELSIF NOT v_exists AND w.kind <> 'UPSERT' AND w.allow_missing IS NOT TRUE THEN
                v_outcome := 'APPOINTMENT_NOT_FOUND';
            ELSIF w.expected_revision IS NOT NULL AND (
                NOT v_exists
                OR w.expected_revision NOT IN (
                    0, CASE stored.state WHEN 'EXPIRED' THEN -stored.revision ELSE stored.revision END
                )
            ) THEN
                v_outcome := 'ETAG_MISMATCH';
            ELSIF w.create_only AND v_exists THEN
                v_outcome := 'APPOINTMENT_EXISTS';
            ELSIF w.updated_at < v_guard
                OR w.kind <> 'CANCEL' AND (
                    w.updated_at = v_guard AND stored.state = 'CANCELLED'
                    OR w.updated_at <= stored.redacted_updated_at
                ) THEN
                v_outcome := 'STALE';
            END IF;
        END IF;

        IF w.kind = 'UPSERT' OR v_outcome IS NOT NULL THEN
            NULL;
        ELSIF w.kind = 'CANCEL' THEN
            IF stored.state = 'CANCELLED' THEN
                v_outcome := 'UNCHANGED';
                -- Nothing visible changes, but updates older than this cancel are stale now.
                IF coalesce(w.updated_at > v_guard, w.updated_at IS NOT NULL) THEN
                    stored.cancel_updated_at := w.updated_at;
                    v_noted := NOT w.validate_only;
                END IF;
            END IF;
        ELSIF w.kind = 'REDACT' THEN
            IF NOT is_to_redact(p_organization_id, w.id) THEN
                v_outcome := 'UNCHANGED';
                -- What was accepted before is redacted all the same.
                IF NOT w.validate_only THEN
                    PERFORM erase_appointment(
                        p_organization_id, w.id, v_recorded_at, w.accepted_at
                    );
                END IF;
            END IF;
        ELSIF w.kind = 'EXPIRE' THEN
            IF v_due IS NULL THEN
                v_outcome := 'UNCHANGED';
            END IF;
        ELSE
            IF NOT v_exists THEN
                NULL;  -- It is created.
            ELSIF stored.state = 'CANCELLED' THEN
                v_outcome := 'APPOINTMENT_CANCELLED';
            ELSIF stored.state = 'EXPIRED' THEN
                v_outcome := 'HOLD_EXPIRED';
            ELSIF w.kind = 'CONFIRM' THEN
                IF stored.state = 'ACTIVE' THEN
                    v_outcome := 'UNCHANGED';
                END IF;
            ELSE
                IF 'resource_id' <> ALL (w.fields) THEN
                    w.resource_id := stored.resource_id;
                END IF;
                IF 'additional_resource_ids' <> ALL (w.fields) THEN
                    w.additional_resource_ids := stored.additional_resource_ids;
                END IF;
                IF 'start' <> ALL (w.fields) THEN
                    w.start_time := stored.start_time;
                END IF;
                IF 'end' <> ALL (w.fields) THEN
                    w.end_time := stored.end_time;
                END IF;
                IF 'title' <> ALL (w.fields) THEN
                    w.title := stored.title;
                END IF;
                IF 'attributes' <> ALL (w.fields) AND w.attributes_patch IS NULL THEN
                    w.attributes := stored.attributes;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := stored.hold_until;
                END IF;
                -- A time of the service's own becomes that of this change.
                IF 'updated_at' <> ALL (w.fields) AND stored.updated_at_given THEN
                    w.updated_at := stored.updated_at;
                END IF;
                -- The rules of service/rules.py that concern fields that the update does not name.
                IF w.start_time >= w.end_time OR w.end_time - w.start_time > '3653 days' THEN
                    v_outcome := 'RANGE_INVALID';
                ELSIF w.resource_id = ANY (w.additional_resource_ids) THEN
                    v_outcome := 'RESOURCES_INVALID';
                ELSIF octet_length(w.attributes::text) > 16384 THEN
                    v_outcome := 'ATTRIBUTES_INVALID';
                END IF;
            END IF;
        END IF;

        IF v_outcome IS NULL AND w.kind IN ('UPSERT', 'UPDATE') THEN
            IF NOT v_exists THEN
                NULL;
            ELSIF stored.state IN ('ACTIVE', 'HELD')
                AND stored.resource_id = w.resource_id
                AND stored.start_time = w.start_time
                AND stored.end_time = w.end_time
                AND stored.title = w.title
                AND stored.attributes::text = w.attributes::text
                AND stored.hold_until IS NOT DISTINCT FROM w.hold_until
                AND stored.additional_resource_ids IS NOT DISTINCT FROM w.additional_resource_ids
                AND (w.created_at IS NULL OR w.created_at = stored.created_at)
                AND (w.updated_at IS NULL OR w.updated_at = stored.updated_at) THEN
                v_outcome := 'UNCHANGED';
            ELSIF w.hold_until IS NOT NULL AND stored.state = 'ACTIVE' THEN
                v_outcome := 'APPOINTMENT_FIRM';
            END IF;
            IF v_outcome IS NULL AND p_check_overlap THEN
                v_resource_id := w.resource_id;
                v_before := w.end_time;
                LOOP
                    -- Ranges of a resource never overlap, so of those that start before the new
                    -- end only the last one can overlap the new range. With the row comparison
                    -- only one index has this order. The row found may belong to another
                    -- resource.
                    SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.hold_until
                    INTO neighbour
                    FROM appointments a
                    WHERE a.organization_id = p_organization_id
                        AND (a.resource_id, a.start_time) < (v_resource_id, v_before)
                        AND a.state IN ('ACTIVE', 'HELD')
                        AND a.appointment_id <> w.id
                    ORDER BY a.resource_id DESC, a.start_time DESC
                    LIMIT 1;
                    IF neighbour.resource_id = v_resource_id
                        AND neighbour.end_time > w.start_time THEN
                        IF neighbour.hold_until <= v_recorded_at THEN
                            v_due := array_append(v_due, neighbour.appointment_id);
                            v_before := neighbour.start_time;
                        ELSE
                            v_outcome := 'TIME_RANGE_CONFLICT';
                            conflicts := conflicting_appointments(
                                p_organization_id,
                                array_prepend(w.resource_id, w.additional_resource_ids),
                                ARRAY[w.id], w.start_time, w.end_time, v_recorded_at
                            );
                            IF w.suggest > 0 THEN
                                alternatives := alternative_ranges(
                                    p_organization_id,
                                    array_prepend(w.resource_id, w.additional_resource_ids),
                                    w.id, w.start_time, w.end_time, v_recorded_at, w.suggest
                                );
                            END IF;
                            RETURN NEXT;
                            conflicts := NULL;
                            alternatives := NULL;
                            CONTINUE each_write;
                        END IF;
                    ELSE
                        EXIT WHEN w.additional_resource_ids IS NULL;
                        -- The next resource. They are distinct.
                        v_resource_id := w.additional_resource_ids[
                            coalesce(array_position(w.additional_resource_ids, v_resource_id), 0) + 1
                        ];
                        EXIT WHEN v_resource_id IS NULL;
                        v_before := w.end_time;
                    END IF;
                END LOOP;
            END IF;
        END IF;

        IF v_outcome IS NULL THEN
            IF v_due IS NOT NULL AND w.kind <> 'EXPIRE' THEN
                IF w.id = ANY (v_due) THEN
                    stored.version := stored.version + 1;
                END IF;
                IF NOT w.validate_only THEN
                    -- This function reads the revision and the earliest time from the table, and
                    -- stores the new ones there.
                    UPDATE organizations o
                    SET revision = v_revision, recorded_at = v_recorded_at
                    WHERE o.organization_id = p_organization_id;
                    PERFORM apply_writes(
                        p_organization_id,
                        (
                            SELECT json_agg(json_build_object(
                                'kind', 'EXPIRE', 'id', due.id, 'actor', '', 'validate_only', false
                            ) ORDER BY due.id COLLATE "C")
                            FROM (SELECT DISTINCT unnest(v_due) AS id) AS due
                        )
                    );
                    SELECT o.revision, o.recorded_at INTO v_revision, v_recorded_at
                    FROM organizations o
                    WHERE o.organization_id = p_organization_id;
                END IF;
            END IF;

            IF w.kind IN ('UPSERT', 'UPDATE') THEN
                v_outcome := CASE WHEN v_exists THEN 'UPDATED' ELSE 'CREATED' END;
                v_placed := NOT v_exists
                    OR stored.start_time <> w.start_time
                    OR stored.end_time <> w.end_time
                    OR stored.resource_id <> w.resource_id
                    OR stored.additional_resource_ids IS DISTINCT FROM w.additional_resource_ids;
                IF v_several OR stored.resource_id <> w.resource_id THEN
                    SELECT array_agg(before.resource_id ORDER BY before.resource_id)
                    INTO v_released
                    FROM unnest(array_prepend(stored.resource_id, stored.additional_resource_ids))
                        AS before (resource_id)
                    WHERE before.resource_id <> w.resource_id
                        AND (before.resource_id = ANY (w.additional_resource_ids)) IS NOT TRUE;
                END IF;
                -- In the order of the table's columns. One assignment is cheaper than many.
                stored := ROW(
                    p_organization_id, w.id, w.resource_id, w.start_time, w.end_time, w.title,
                    w.attributes, coalesce(w.created_at, stored.created_at, v_recorded_at),
                    coalesce(w.updated_at, v_recorded_at), w.updated_at IS NOT NULL,
                    CASE WHEN w.hold_until IS NULL THEN 'ACTIVE' ELSE 'HELD' END,
                    coalesce(stored.version, 0) + 1, v_revision + 1, NULL::timestamptz,
                    0::smallint, w.additional_resource_ids, w.hold_until,
                    stored.redacted_at, stored.redacted_updated_at
                );
            ELSE
                IF w.kind = 'CANCEL' THEN
                    v_outcome := 'CANCELLED';
                    stored.state := 'CANCELLED';
                    stored.cancel_updated_at := w.updated_at;
                ELSIF w.kind = 'CONFIRM' THEN
                    v_outcome := 'CONFIRMED';
                    stored.state := 'ACTIVE';
                    stored.hold_until := NULL;
                ELSIF w.kind = 'REDACT' THEN
                    v_outcome := 'REDACTED';
                    -- So the change reaches everyone who follows one of the resources and may have
                    -- seen the appointment there.
                    SELECT array_agg(DISTINCT before.resource_id)
                    INTO v_released
                    FROM appointment_history h
                    CROSS JOIN LATERAL unnest(
                        array_prepend(h.resource_id, h.additional_resource_ids)
                    ) AS before (resource_id)
                    WHERE h.organization_id = p_organization_id
                        AND h.appointment_id BETWEEN w.id AND w.id
                        AND before.resource_id <> stored.resource_id
                        AND (before.resource_id = ANY (stored.additional_resource_ids)) IS NOT TRUE;
                    stored.title := '';
                    stored.attributes := '{}';
                    IF NOT w.validate_only THEN
                        PERFORM erase_appointment(
                            p_organization_id, w.id, v_recorded_at, w.accepted_at
                        );
                        SELECT a.redacted_at, a.redacted_updated_at
                        INTO stored.redacted_at, stored.redacted_updated_at
                        FROM appointments a
                        WHERE a.organization_id = p_organization_id
                            AND a.appointment_id BETWEEN w.id AND w.id
                        ORDER BY a.appointment_id, a.ordinal;
                    END IF;
                ELSE
                    v_outcome := 'EXPIRED';
                END IF;
                stored.version := stored.version + 1;
                stored.revision := v_revision + 1;
            END IF;
            -- A validated write that is not stored has no revision, and therefore no etag.
            IF w.validate_only THEN
                stored.revision := 0;
            ELSE
                v_revision := stored.revision;
                v_changed := true;
            END IF;
        END IF;

        IF v_changed OR v_noted THEN
            IF v_several THEN
                -- Its rows are replaced, since a new one can be in the place of another old one.
                DELETE FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN w.id AND w.id;
                INSERT INTO appointments (
                    organization_id, appointment_id, ordinal, resource_id, start_time, end_time,
                    title, attributes, created_at, updated_at, updated_at_given, hold_until, state,
                    version, revision
                )
                SELECT
                    p_organization_id, w.id, more.ordinal, more.resource_id,
                    stored.start_time, stored.end_time, '', '{}', stored.created_at,
                    stored.updated_at, false, stored.hold_until, stored.state,
                    stored.version, stored.revision
                FROM unnest(stored.additional_resource_ids)
                    WITH ORDINALITY AS more (resource_id, ordinal);
            END IF;
            -- ON CONFLICT always uses the primary key.
            INSERT INTO appointments (
                organization_id, appointment_id, ordinal, resource_id, additional_resource_ids,
                start_time, end_time, title, attributes, created_at, updated_at,
                updated_at_given, cancel_updated_at, hold_until, state, version, revision,
                redacted_at, redacted_updated_at
            ) VALUES (
                p_organization_id, w.id, 0, stored.resource_id, stored.additional_resource_ids,
                stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.updated_at_given,
                stored.cancel_updated_at, stored.hold_until,
                stored.state, stored.version, stored.revision,
                stored.redacted_at, stored.redacted_updated_at
            )
            ON CONFLICT (organization_id, appointment_id, ordinal) DO UPDATE
            SET resource_id = excluded.resource_id,
                additional_resource_ids = excluded.additional_resource_ids,
                start_time = excluded.start_time,
                end_time = excluded.end_time,
                title = excluded.title,
                attributes = excluded.attributes,
                created_at = excluded.created_at,
                updated_at = excluded.updated_at,
                updated_at_given = excluded.updated_at_given,
                cancel_updated_at = excluded.cancel_updated_at,
                hold_until = excluded.hold_until,
                state = excluded.state,
                version = excluded.version,
                revision = excluded.revision,
                redacted_at = excluded.redacted_at,
                redacted_updated_at = excluded.redacted_updated_at;
        END IF;
        IF w.redacted AND w.idempotency_key IS NOT NULL
            AND (v_changed OR v_outcome IN ('UNCHANGED', 'STALE')) THEN
            INSERT INTO erased_keys (organization_id, key_digest)
            VALUES (p_organization_id, sha256(convert_to(w.idempotency_key, 'UTF8')));
            w.idempotency_key := NULL;
        END IF;
        IF v_changed THEN
            INSERT INTO appointment_history (
                organization_id, revision, change, recorded_at, actor,
                idempotency_key, idempotency_digest,
                appointment_id, resource_id, additional_resource_ids, released_resource_ids,
                start_time, end_time, title, attributes,
                created_at, updated_at, hold_until, state, version, placed, trace_context
            ) VALUES (
                p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                w.idempotency_key,
                CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                stored.appointment_id, stored.resource_id, stored.additional_resource_ids,
                v_released, stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.hold_until, stored.state, stored.version,
                v_placed, w.trace
            );
        ELSIF w.idempotency_key IS NOT NULL AND v_outcome IN ('UNCHANGED', 'STALE')
            AND NOT w.validate_only THEN
            INSERT INTO unchanged_writes (
                organization_id, idempotency_key, idempotency_digest, outcome, revision
            ) VALUES (
                p_organization_id, w.idempotency_key, decode(w.idempotency_digest, 'hex'),
                v_outcome, CASE WHEN v_due IS NULL THEN stored.revision ELSE -stored.revision END
            );
        END IF;

        RETURN NEXT;
    END LOOP;

    IF v_revision > v_first_revision THEN
        INSERT INTO organizations (organization_id, revision, recorded_at)
        VALUES (p_organization_id, v_revision, v_recorded_at)
        ON CONFLICT (organization_id) DO UPDATE
        SET revision = excluded.revision, recorded_at = excluded.recorded_at;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION apply_writes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_writes TO appointments_service, appointments_caller;

-- Apply a batch of writes of one organization by apply_writes, all or none. Overlaps are judged
-- on the final state: two appointments may swap places. No id may be given twice.
--
-- The rows are those of apply_writes. If any write is refused, nothing is written, no revision is
-- used, and the outcome of every other write is NOT_WRITTEN. At most 64 writes get the outcome
-- TIME_RANGE_CONFLICT, which are more than fit in an error. A conflict with another write of the
-- batch has its index, from 0. With p_validate_only nothing is written either.
CREATE FUNCTION apply_atomically(p_organization_id text, p_writes json, p_validate_only boolean)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    c_not_refused constant text [] := '{CREATED,UPDATED,CONFIRMED,CANCELLED,UNCHANGED,STALE}';
    v_lock_wait double precision;
    v_now timestamptz;
    v_first_revision bigint;
    v_revision bigint;
    v_ids text [];
    v_outcomes text [];
    v_conflicts json [];
    v_appointments appointments [];
    v_refused boolean;
    v_overlap boolean := false;
    v_taken json;
    v_due json;
    n integer;
    found_conflicts record;
BEGIN
    PERFORM check_organization(p_organization_id);
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    v_lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT coalesce(max(o.revision), 0), greatest(max(o.recorded_at), clock_timestamp())
    INTO v_first_revision, v_now
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    v_ids := ARRAY(
        SELECT w.value ->> 'id'
        FROM json_array_elements(p_writes) WITH ORDINALITY AS w (value, place)
        ORDER BY w.place
    );

    BEGIN
        -- Holds that have expired and are in the way are recorded first. The others would only
        -- make the transaction longer. Those of the batch itself are recorded by its writes, which
        -- are judged by the etag from before. Ranges of a resource do not overlap, so of the holds
        -- that start before a range only the last one can overlap it.
        SELECT json_agg(json_build_object(
            'kind', 'EXPIRE', 'id', held.appointment_id, 'actor', '', 'validate_only', false
        ) ORDER BY held.appointment_id)
        INTO v_due
        FROM (
            SELECT DISTINCT candidate.appointment_id
            FROM json_to_recordset(p_writes) AS w (
                resource_id text, additional_resource_ids text [],
                start_time timestamptz, end_time timestamptz
            )
            CROSS JOIN unnest(array_prepend(w.resource_id, w.additional_resource_ids))
                AS wanted (resource_id)
            CROSS JOIN LATERAL (
                (
                    SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                    FROM appointments a
                    WHERE a.organization_id = p_organization_id
                        AND (a.resource_id, a.start_time) < (wanted.resource_id, w.start_time)
                        AND a.state IN ('ACTIVE', 'HELD')
                    ORDER BY a.resource_id DESC, a.start_time DESC
                    LIMIT 1
                )
                UNION ALL
                (
                    SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                    FROM appointments a
                    WHERE a.organization_id = p_organization_id
                        AND a.resource_id = wanted.resource_id
                        AND a.state IN ('ACTIVE', 'HELD')
                        AND a.start_time >= w.start_time
                        AND a.start_time < w.end_time
                    ORDER BY a.start_time
                )
            ) AS candidate
            WHERE candidate.resource_id = wanted.resource_id
                AND candidate.end_time > w.start_time
                AND candidate.hold_until <= v_now
                AND candidate.appointment_id <> ALL (v_ids)
        ) AS held;
        IF v_due IS NOT NULL THEN
            PERFORM apply_writes(p_organization_id, v_due);
        END IF;

        -- The exclusion constraint. It is the only deferrable one.
        SET CONSTRAINTS ALL DEFERRED;
        SELECT
            array_agg(r.outcome ORDER BY r.ordinality),
            array_agg(r.conflicts ORDER BY r.ordinality),
            array_agg(r.appointment ORDER BY r.ordinality)
        INTO v_outcomes, v_conflicts, v_appointments
        FROM apply_writes(p_organization_id, p_writes, false) WITH ORDINALITY AS r;
        -- A write that is stale has recorded nothing, but another one may take its place.
        SELECT json_agg(json_build_object(
            'kind', 'EXPIRE', 'id', a.appointment_id, 'actor', '', 'validate_only', false
        ) ORDER BY a.appointment_id)
        INTO v_due
        FROM unnest(v_ids) AS item (id)
        JOIN appointments a
            ON a.organization_id = p_organization_id
                AND a.appointment_id = item.id
                AND a.ordinal = 0
        WHERE a.state = 'HELD' AND a.hold_until <= v_now;
        IF v_due IS NOT NULL THEN
            PERFORM apply_writes(p_organization_id, v_due);
        END IF;
        SELECT coalesce(max(o.revision), 0) INTO v_revision
        FROM organizations o
        WHERE o.organization_id = p_organization_id;
        BEGIN
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN exclusion_violation THEN
            v_overlap := true;
        END;

        IF v_overlap THEN
            -- The rows that the batch would occupy. A condition on the state would let the planner
            -- read all rows of the organization for each item.
            SELECT json_agg(json_build_object(
                'place', item.place, 'appointment_id', taken.appointment_id,
                'ordinal', taken.ordinal, 'resource_id', taken.resource_id,
                'start_time', taken.start_time, 'end_time', taken.end_time,
                'version', taken.version, 'revision', taken.revision
            ))
            INTO v_taken
            FROM unnest(v_ids, v_outcomes) WITH ORDINALITY AS item (id, outcome, place)
            CROSS JOIN LATERAL (
                SELECT
                    a.appointment_id, a.ordinal, a.resource_id, a.start_time, a.end_time,
                    a.version, a.revision, a.state
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN item.id AND item.id
                ORDER BY a.appointment_id, a.ordinal
                OFFSET 0
            ) AS taken
            WHERE item.outcome = ANY (c_not_refused) AND taken.state IN ('ACTIVE', 'HELD');
        END IF;

        v_refused := v_overlap OR NOT v_outcomes <@ c_not_refused;
        IF v_refused OR p_validate_only THEN
            RAISE EXCEPTION 'nothing is written' USING ERRCODE = 'AP001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'AP001' THEN
        v_revision := v_first_revision;
    END;

    IF v_overlap THEN
        -- The batch is undone, so ranges of a resource do not overlap.
        FOR found_conflicts IN
        WITH taken AS MATERIALIZED (
            SELECT *
            FROM json_to_recordset(v_taken) AS a (
                place integer, appointment_id text, ordinal smallint, resource_id text,
                start_time timestamptz, end_time timestamptz, version integer, revision bigint
            )
        ),
        -- The items that the batch has moved, and whether others of the batch overlap them.
        -- Writes that changed nothing are in their place rightly.
        mine AS (
            SELECT
                t.place, t.start_time, t.end_time,
                array_agg(t.resource_id ORDER BY t.ordinal) AS resource_ids,
                bool_or(
                    coalesce(t.start_time < t.latest_end, false)
                    OR coalesce(t.end_time > t.next_start, false)
                ) AS crowded
            FROM (
                SELECT
                    taken.*,
                    max(taken.end_time) OVER (
                        by_start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    ) AS latest_end,
                    lead(taken.start_time) OVER by_start AS next_start
                FROM taken
                WINDOW by_start AS (
                    PARTITION BY taken.resource_id ORDER BY taken.start_time, taken.place
                )
            ) AS t
            WHERE t.revision > v_first_revision
            GROUP BY t.place, t.start_time, t.end_time
            ORDER BY t.place
        ),
        -- More than fit in an error.
        at_fault AS MATERIALIZED (
            SELECT mine.*, outside.conflicts
            FROM mine
            CROSS JOIN LATERAL (
                SELECT conflicting_appointments(
                    p_organization_id, mine.resource_ids, v_ids,
                    mine.start_time, mine.end_time, v_now
                ) AS conflicts
                OFFSET 0
            ) AS outside
            WHERE mine.crowded OR outside.conflicts IS NOT NULL
            ORDER BY mine.place
            LIMIT 64
        ),
        conflict AS (
            SELECT
                at_fault.place, other.appointment_id AS id, other.start_time, other.end_time,
                other.version, other.place - 1 AS index,
                array_agg(shared.resource_id ORDER BY shared.place) AS resource_ids
            FROM at_fault
            CROSS JOIN unnest(at_fault.resource_ids)
                WITH ORDINALITY AS shared (resource_id, place)
            JOIN taken other ON other.resource_id = shared.resource_id
            WHERE at_fault.crowded
                AND other.place <> at_fault.place
                AND other.start_time < at_fault.end_time
                AND at_fault.start_time < other.end_time
            GROUP BY
                at_fault.place, other.appointment_id, other.start_time, other.end_time,
                other.version, other.place
            UNION ALL
            SELECT
                at_fault.place, other.id, other.start, other.end,
                other.version, NULL, other.resource_ids
            FROM at_fault
            CROSS JOIN LATERAL json_to_recordset(at_fault.conflicts) AS other (
                id text, start timestamptz, "end" timestamptz, version integer,
                resource_ids text []
            )
        ),
        numbered AS (
            SELECT
                c.*,
                row_number() OVER (PARTITION BY c.place ORDER BY c.start_time, c.id) AS number
            FROM conflict c
        )
        SELECT
            c.place,
            json_agg(
                json_build_object(
                    'id', c.id, 'start', c.start_time, 'end', c.end_time,
                    'version', c.version, 'resource_ids', c.resource_ids, 'index', c.index
                ) ORDER BY c.number
            ) AS conflicts
        FROM numbered c
        WHERE c.number <= 21
        GROUP BY c.place
        LOOP
            v_outcomes[found_conflicts.place] := 'TIME_RANGE_CONFLICT';
            v_conflicts[found_conflicts.place] := found_conflicts.conflicts;
        END LOOP;
        IF v_outcomes <@ c_not_refused THEN
            RAISE EXCEPTION 'the writes overlap, but no conflict was found'
            USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'appointments_no_overlap';
        END IF;
    END IF;

    FOR n IN 1 .. cardinality(v_outcomes) LOOP
        IF v_refused AND v_outcomes[n] = ANY (c_not_refused) THEN
            v_outcomes[n] := 'NOT_WRITTEN';
        ELSIF (v_appointments[n]).revision > v_revision THEN
            v_appointments[n].revision := 0;
        END IF;
        RETURN QUERY
        SELECT
            v_outcomes[n], v_revision, v_lock_wait, v_conflicts[n], NULL::json, v_appointments[n];
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_atomically FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_atomically TO appointments_service, appointments_caller;

-- Apply the batches of several organizations by apply_writes, in one transaction, so that they
-- share a round trip and a commit.
--
-- batches: a JSON array of {"organization_id", "writes"}, each organization once. The rows
-- are those of apply_writes, one for each write, in the order of the batches.
--
-- It does not wait for an organization's lock that another session holds: that batch is
-- skipped, with one row whose outcome is BUSY. Any other lock wait (for rows locked by
-- hand-written SQL) fails the whole call after 50 ms with lock_not_available; the caller then
-- applies the batches one by one.
CREATE FUNCTION apply_batches(p_batches json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '50ms'
AS $$
#variable_conflict use_column
DECLARE
    batch record;
BEGIN
    PERFORM require_no_organization();
    FOR batch IN
        SELECT * FROM json_to_recordset(p_batches) AS r (organization_id text, writes json)
    LOOP
        -- apply_writes takes the same lock again, which the transaction already holds.
        IF pg_try_advisory_xact_lock(organization_lock_key(batch.organization_id)) THEN
            RETURN QUERY SELECT * FROM apply_writes(batch.organization_id, batch.writes);
        ELSE
            outcome := 'BUSY';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_batches FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_batches TO appointments_service, appointments_caller;

-- Return the latest revision of an organization that was recorded at or before a time; 0 if
-- there is none. recorded_at never decreases as the revision grows, so a binary search on the
-- primary key finds it, without another index that every write would have to maintain.
CREATE FUNCTION revision_at(p_organization_id text, p_time timestamptz)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    low bigint := 0;
    high bigint;
    middle bigint;
    v_recorded boolean;
BEGIN
    SELECT o.revision INTO high
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    high := coalesce(high, 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        -- The order makes the planner use the primary key, as in apply_writes.
        SELECT h.recorded_at <= p_time INTO v_recorded
        FROM appointment_history h
        WHERE h.organization_id = p_organization_id AND h.revision BETWEEN middle AND middle
        ORDER BY h.revision;
        IF v_recorded THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    PERFORM leave_organization(v_entered);
    RETURN low;
END
$$;

REVOKE ALL ON FUNCTION revision_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revision_at TO appointments_service, appointments_caller;

-- Return the latest revisions of several organizations, with the times when they were recorded,
-- and the time of the state that is read now. Organizations without one are left out.
CREATE FUNCTION organization_moments(p_organization_ids text [])
RETURNS TABLE (
    organization_id text, revision bigint, recorded_at timestamptz, clock timestamptz
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT o.organization_id, o.revision, o.recorded_at, greatest(o.recorded_at, now())
    FROM organizations o
    WHERE o.organization_id = ANY (p_organization_ids);
END
$$;

REVOKE ALL ON FUNCTION organization_moments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION organization_moments TO appointments_service, appointments_caller;

-- Return the current state of appointments, given as pairs of organization and id, with the moment
-- of the organization. There is a row for each pair, with its place, from 1. An appointment that does
-- not exist is null. The conditions are those of service/reads/present.py. OFFSET 0 and LIMIT keep the
-- planner from joining with all rows.
CREATE FUNCTION current_appointments(p_organization_ids text [], p_ids text [])
RETURNS TABLE (
    place bigint,
    organization_revision bigint,
    recorded_at timestamptz,
    clock timestamptz,
    appointment appointments
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT
        wanted.place,
        coalesce(organization.revision, 0),
        organization.recorded_at,
        greatest(organization.recorded_at, now()),
        found.appointment
    FROM unnest(p_organization_ids, p_ids) WITH ORDINALITY AS wanted (organization_id, id, place)
    LEFT JOIN LATERAL (
        SELECT o.revision, o.recorded_at
        FROM organizations o
        WHERE o.organization_id = wanted.organization_id
        OFFSET 0
    ) AS organization ON true
    LEFT JOIN LATERAL (
        SELECT a AS appointment
        FROM appointments a
        WHERE a.organization_id = wanted.organization_id AND a.appointment_id >= wanted.id
            AND (a.appointment_id, a.ordinal) <= (wanted.id, 0)
        ORDER BY a.appointment_id DESC, a.ordinal DESC
        LIMIT 1
    ) AS found ON true;
END
$$;

REVOKE ALL ON FUNCTION current_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION current_appointments TO appointments_service, appointments_caller;

-- Return lists of what occupies a range, by start and id. They are given as parallel arrays: those
-- that intersect [start, end) of an organization, of all resources or of one, at most so many. There
-- is a row for each appointment, with the place of its list, from 1, and the moment of the
-- organization. For a list without appointments there is one in which the appointment is null.
--
-- The conditions are those of service/reads/present.py for such a list, which says how they fit the
-- indexes. Since the function is stable, all lists have the snapshot of the statement.
--
-- A list delays the others. If one takes long, a row of it has no revision: then it may lack
-- appointments, and is to be read alone. That is known by what is read, as a busy server takes long
-- for every list.
CREATE FUNCTION listed_appointments(
    p_organization_ids text [],
    p_resource_ids text [],
    p_starts timestamptz [],
    p_ends timestamptz [],
    p_limits integer []
)
RETURNS TABLE (
    place integer,
    organization_revision bigint,
    recorded_at timestamptz,
    clock timestamptz,
    appointment appointments
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    -- How many rows are read that start in a range, whether they occupy it or not. The last of
    -- them is in the list, without a revision.
    c_most constant integer := 500;
    -- How many bytes of attributes a list may have. An appointment with more than its share is
    -- null, without a revision.
    c_bytes constant integer := 262144;
    -- How many blocks are read of the index that finds what is running, about a millisecond.
    c_blocks constant integer := 150;
    c_running constant regclass := 'appointments_no_overlap';
    v_organization_id text;
    v_resource_id text;
    v_start timestamptz;
    v_end timestamptz;
    v_limit integer;
    v_revision bigint;
    v_recorded_at timestamptz;
    v_clock timestamptz;
    v_found integer;
    v_blocks bigint;
BEGIN
    PERFORM require_no_organization();
    FOR v_place IN 1 .. cardinality(p_organization_ids) LOOP
        v_organization_id := p_organization_ids[v_place];
        v_resource_id := p_resource_ids[v_place];
        v_start := p_starts[v_place];
        v_end := p_ends[v_place];
        v_limit := p_limits[v_place];
        SELECT coalesce(max(o.revision), 0), max(o.recorded_at), greatest(max(o.recorded_at), now())
        INTO v_revision, v_recorded_at, v_clock
        FROM organizations o
        WHERE o.organization_id = v_organization_id;
        v_blocks := pg_stat_get_xact_blocks_fetched(c_running);
        -- Few of the rows that are looked at are listed, and only those are read with their content,
        -- which may be stored elsewhere. That of a row for a further resource is its appointment's.
        RETURN QUERY
        SELECT
            v_place, CASE WHEN listed.number < c_most AND whole.fits THEN v_revision END,
            v_recorded_at, v_clock, CASE WHEN whole.fits THEN whole.appointment END
        FROM (
            (
                SELECT starting.start_time, starting.appointment_id, starting.number
                FROM (
                    SELECT
                        a.start_time, a.appointment_id, a.ordinal, a.state, a.hold_until,
                        row_number() OVER (ORDER BY a.start_time, a.appointment_id) AS number
                    FROM appointments a
                    WHERE v_resource_id IS NULL AND a.organization_id = v_organization_id
                        AND a.start_time >= v_start AND a.start_time < v_end
                    ORDER BY a.start_time, a.appointment_id
                    LIMIT c_most
                ) AS starting
                WHERE starting.number = c_most
                    OR (
                        starting.ordinal = 0 AND starting.state IN ('ACTIVE', 'HELD')
                        AND (starting.hold_until IS NULL OR starting.hold_until > v_clock)
                    )
                ORDER BY starting.start_time, starting.appointment_id
                LIMIT v_limit
            )
            UNION ALL
            SELECT running.start_time, running.appointment_id, 0
            FROM (
                SELECT a.start_time, a.appointment_id
                FROM appointments a
                WHERE v_resource_id IS NULL AND a.organization_id = v_organization_id
                    AND a.ordinal = 0 AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                    AND tstzrange(a.start_time, a.end_time) @> v_start
                OFFSET 0
            ) AS running
            WHERE running.start_time < v_start
            UNION ALL
            -- No two that occupy a resource have the same start: ids need not be compared.
            (
                SELECT a.start_time, a.appointment_id, 0
                FROM appointments a
                WHERE v_resource_id IS NOT NULL AND a.organization_id = v_organization_id
                    AND (a.resource_id, a.start_time) >= (v_resource_id, v_start)
                    AND (a.resource_id, a.start_time) < (v_resource_id, v_end)
                    AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                ORDER BY a.resource_id, a.start_time
                LIMIT v_limit
            )
            UNION ALL
            SELECT running.start_time, running.appointment_id, 0
            FROM (
                SELECT a.start_time, a.appointment_id
                FROM appointments a
                WHERE v_resource_id IS NOT NULL AND a.organization_id = v_organization_id
                    AND a.resource_id = v_resource_id
                    AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                    AND tstzrange(a.start_time, a.end_time) @> v_start
                OFFSET 0
            ) AS running
            WHERE running.start_time < v_start
            ORDER BY start_time, appointment_id, number
            LIMIT v_limit
        ) AS listed
        CROSS JOIN LATERAL (
            SELECT a AS appointment, octet_length(a.attributes::text) <= c_bytes / v_limit AS fits
            FROM appointments a
            WHERE a.organization_id = v_organization_id
                AND a.appointment_id >= listed.appointment_id
                AND (a.appointment_id, a.ordinal) <= (listed.appointment_id, 0)
            ORDER BY a.appointment_id DESC, a.ordinal DESC
            LIMIT 1
        ) AS whole
        ORDER BY listed.start_time, listed.appointment_id, listed.number;
        GET DIAGNOSTICS v_found = ROW_COUNT;
        IF pg_stat_get_xact_blocks_fetched(c_running) - v_blocks > c_blocks THEN
            v_revision := NULL;
        END IF;
        IF v_found = 0 OR v_revision IS NULL THEN
            RETURN QUERY
            SELECT v_place, v_revision, v_recorded_at, v_clock, NULL::appointments;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION listed_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION listed_appointments TO appointments_service, appointments_caller;

-- Operations

-- Assign the transaction's id before its rows get their sequences. advance_operation_queue
-- relies on this order.
CREATE FUNCTION number_transaction()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION number_transaction FROM PUBLIC;
CREATE OR REPLACE TRIGGER queued_operations_numbered BEFORE INSERT ON queued_operations
FOR EACH STATEMENT EXECUTE FUNCTION number_transaction();

-- Return the sequence at which a search for queued operations starts. No operation with a lower
-- one is queued, or can become visible when an open transaction commits.
CREATE FUNCTION first_queued_sequence()
RETURNS bigint
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
    SELECT coalesce((SELECT s.first_sequence FROM operation_queue_start s), 0)
$$;

REVOKE ALL ON FUNCTION first_queued_sequence FROM PUBLIC;

-- Move the start of the queue past applied operations, and return it. It moves at most once per
-- thousand operations, since each move leaves a dead row.
--
-- All rows up to a sequence are visible or rolled back when every transaction that began before
-- the sequence was read has ended. So the start does not move while an older writing
-- transaction is open. Read-only transactions do not delay it.
CREATE FUNCTION advance_operation_queue()
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    c_step constant bigint := 1000;
    v_start operation_queue_start;
    v_last bigint;
    v_first bigint;
BEGIN
    -- In this order, so that the last sequence is not lower than the start.
    SELECT * INTO v_start FROM operation_queue_start;
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO v_last
    FROM queued_operations_sequence_seq s;
    v_first := coalesce(v_start.first_sequence, 0);
    -- If this transaction already has an id, the id may be lower than that of a transaction with
    -- a sequence up to v_last, so it cannot be used as settling_transaction.
    IF v_last BETWEEN v_first - 1 AND v_first + c_step
        OR v_start IS NULL
        OR pg_current_xact_id_if_assigned() IS NOT NULL
    THEN
        RETURN v_first;
    END IF;

    IF v_last < v_first THEN
        -- The sequence was reset.
        v_first := 0;
    ELSIF v_start.settling_transaction >= pg_snapshot_xmin(pg_current_snapshot()) THEN
        -- Older transactions may be open. An id in the future is from another server: the
        -- database was restored from a dump.
        IF v_start.settling_transaction < pg_snapshot_xmax(pg_current_snapshot()) THEN
            RETURN v_first;
        END IF;
    ELSE
        SELECT q.sequence INTO v_first
        FROM queued_operations q
        WHERE q.sequence + 0 BETWEEN v_start.first_sequence AND v_start.settling_sequence
        ORDER BY q.sequence + 0
        LIMIT 1;
        v_first := coalesce(v_first, v_start.settling_sequence + 1);
        IF v_first <= v_start.settling_sequence
            AND v_first < v_start.first_sequence + c_step
        THEN
            RETURN v_first;
        END IF;
    END IF;
    PERFORM FROM operation_queue_start s
    WHERE s.settling_transaction = v_start.settling_transaction
    FOR UPDATE SKIP LOCKED;
    -- Otherwise another session is moving it or has moved it.
    IF FOUND THEN
        UPDATE operation_queue_start
        SET first_sequence = v_first,
            settling_sequence = v_last,
            settling_transaction = pg_current_xact_id();
    END IF;
    RETURN v_first;
END
$$;

REVOKE ALL ON FUNCTION advance_operation_queue FROM PUBLIC;

-- Append operations to the queue, those of several organizations in one call.
--
-- operations: a JSON array of {"organization_id", "operation_id", "accepted_at", "write"}.
CREATE FUNCTION queue_operations(p_operations json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM require_no_organization();
    INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)
    SELECT r.organization_id, r.operation_id, r.accepted_at, r.write
    FROM json_to_recordset(p_operations)
        AS r (organization_id text, operation_id uuid, accepted_at timestamptz, write json);
END
$$;

REVOKE ALL ON FUNCTION queue_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue_operations TO appointments_service, appointments_caller;

-- Return which of the operations of several organizations are finished. Each is the pair of the
-- two arrays that has its place.
CREATE FUNCTION finished_operations(p_organization_ids text [], p_operation_ids uuid [])
RETURNS TABLE (organization_id text, operation_id uuid)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT o.organization_id, o.operation_id
    FROM unnest(p_organization_ids, p_operation_ids) AS wanted (organization_id, operation_id)
    JOIN operations o
        ON o.organization_id = wanted.organization_id AND o.operation_id = wanted.operation_id;
END
$$;

REVOKE ALL ON FUNCTION finished_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finished_operations TO appointments_service, appointments_caller;

-- Return the number of queued operations, at most p_most.
CREATE FUNCTION count_queued_operations(p_most integer)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    c_first constant bigint := first_queued_sequence();
    v_count bigint;
BEGIN
    SELECT count(*) INTO v_count
    FROM (
        SELECT 1
        FROM queued_operations q
        WHERE q.sequence + 0 >= c_first
        ORDER BY q.sequence + 0
        LIMIT p_most
    ) AS counted;
    RETURN v_count;
END
$$;

REVOKE ALL ON FUNCTION count_queued_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION count_queued_operations TO appointments_service;

-- Lease up to p_most organizations that have queued operations, starting after p_after in the
-- order of their ids and wrapping around.
CREATE FUNCTION lease_operations(p_after text, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, fence bigint, attempts integer)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    -- The collation of the column, whatever that of the database is.
    v_next text COLLATE "C" := p_after;
    v_left integer := p_most;
    v_round boolean := false;
    v_leased_until timestamptz;
    v_first constant bigint := advance_operation_queue();
BEGIN
    WHILE v_left > 0 LOOP
        SELECT q.organization_id INTO v_next
        FROM queued_operations q
        WHERE q.organization_id > v_next AND q.sequence >= v_first
        ORDER BY q.organization_id, q.sequence
        LIMIT 1;
        IF NOT FOUND THEN
            EXIT WHEN v_round OR p_after = '';
            v_round := true;
            v_next := '';
            CONTINUE;
        END IF;
        EXIT WHEN v_round AND v_next > p_after;

        SELECT l.leased_until INTO v_leased_until
        FROM operation_leases l
        WHERE l.organization_id = v_next;
        IF NOT FOUND THEN
            -- Two sessions that insert rows of several organizations could deadlock.
            CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtextextended(v_next, 7236002));
            RETURN QUERY
            INSERT INTO operation_leases AS l (organization_id, fence, leased_until, attempts)
            VALUES (v_next, 1, clock_timestamp() + p_lease, 0)
            ON CONFLICT DO NOTHING
            RETURNING l.organization_id, l.fence, l.attempts;
        ELSIF v_leased_until < clock_timestamp() THEN
            RETURN QUERY
            UPDATE operation_leases l
            SET fence = l.fence + 1,
                leased_until = clock_timestamp() + p_lease
            FROM (
                SELECT free.organization_id
                FROM operation_leases free
                WHERE free.organization_id = v_next AND free.leased_until < clock_timestamp()
                FOR UPDATE SKIP LOCKED
            ) AS free
            WHERE l.organization_id = free.organization_id
            RETURNING l.organization_id, l.fence, l.attempts;
        ELSE
            CONTINUE;
        END IF;
        IF FOUND THEN
            v_left := v_left - 1;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION lease_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lease_operations TO appointments_service;

-- Return whether the appointment of a write was redacted after the write was accepted.
CREATE FUNCTION is_redacted_since(
    p_organization_id text, p_write json, p_accepted_at timestamptz
)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = own, public, pg_temp
AS $$
BEGIN
    PERFORM 1
    FROM appointments a
    WHERE a.organization_id = p_organization_id
        AND a.appointment_id = p_write ->> 'id'
        AND a.ordinal = 0
        AND a.redacted_at > p_accepted_at;
    RETURN FOUND;
END
$$;

REVOKE ALL ON FUNCTION is_redacted_since FROM PUBLIC;

-- Return whether an organization was purged after a write was accepted.
CREATE FUNCTION is_purged_since(p_organization_id text, p_accepted_at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
STABLE
SET search_path = own, public, pg_temp
AS $$
BEGIN
    PERFORM 1
    FROM purged_organizations p
    WHERE p.organization_id = p_organization_id AND p.purged_at >= p_accepted_at;
    RETURN FOUND;
END
$$;

REVOKE ALL ON FUNCTION is_purged_since FROM PUBLIC;

-- Store that an operation cannot be applied: as FAILED with p_failure, or, if that is NULL, as
-- TIME_RANGE_CONFLICT with a row that apply_writes does not see (of hand-written SQL in an open
-- transaction).
--
-- Takes the organization's lock: a redaction or a purge in progress would not see the stored write.
CREATE FUNCTION refuse_operation(
    p_organization_id text,
    p_operation_id uuid,
    p_accepted_at timestamptz,
    p_write json,
    p_failure text
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_revision bigint;
    v_conflicts json;
    v_failure text := p_failure;
    v_write json;
BEGIN
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    IF NOT is_purged_since(p_organization_id, p_accepted_at) THEN
        SELECT coalesce(max(o.revision), 0) INTO v_revision
        FROM organizations o
        WHERE o.organization_id = p_organization_id;
        IF p_failure IS NULL THEN
            v_conflicts := conflicts_of_write(p_organization_id, p_write);
        ELSIF is_redacted_since(p_organization_id, p_write, p_accepted_at) THEN
            v_failure := 'the appointment was redacted since';
            v_write := redacted_write(p_write);
        ELSE
            v_write := p_write;
        END IF;
        INSERT INTO operations (
            organization_id, operation_id, accepted_at, finished_at, appointment_id,
            outcome, organization_revision, conflicts, failure, write
        ) VALUES (
            p_organization_id, p_operation_id, p_accepted_at, clock_timestamp(),
            coalesce(p_write ->> 'id', ''),
            CASE WHEN p_failure IS NULL THEN 'TIME_RANGE_CONFLICT' ELSE 'FAILED' END,
            v_revision, v_conflicts, v_failure, v_write
        )
        ON CONFLICT DO NOTHING;
    END IF;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION refuse_operation FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_operation TO appointments_service;

-- Apply operations of one organization by apply_writes, in order, and store their results in
-- the same transaction. Finished operations are skipped, so operations may be passed again.
--
-- operations: a JSON array of {"operation_id", "accepted_at", "write"}.
--
-- Operations that were accepted before their organization was purged are left out. Those that were
-- accepted before their appointment was redacted are applied without what that has erased. The
-- queue in PostgreSQL says which these are, in the writes themselves (p_is_marked). For others the
-- times of acceptance and redaction decide.
--
-- If an operation causes an error, it is finished with that error and the others are applied.
-- Errors that no operation causes (locks, resources, missing privileges, a shutdown of the
-- server) fail the whole call, and nothing is written.
CREATE FUNCTION apply_operations(
    p_organization_id text, p_operations json, p_is_marked boolean DEFAULT false
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_ids uuid[];
    v_accepted timestamptz[];
    v_writes json[];
    v_appointment_ids text[];
    v_done uuid[];
    v_constraint text;
    n integer;
BEGIN
    -- Before the query for finished operations: another session may be applying the same ones.
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));

    v_ids := ARRAY(
        SELECT (o.value ->> 'operation_id')::uuid FROM json_array_elements(p_operations) AS o (value)
    );
    -- One by one. With `= ANY`, PostgreSQL 15 and 16 could read all the organization's rows, whose
    -- estimated cost can be the same.
    SELECT coalesce(array_agg(done.operation_id), '{}') INTO v_done
    FROM unnest(v_ids) AS given (id)
    CROSS JOIN LATERAL (
        SELECT o.operation_id
        FROM operations o
        WHERE o.organization_id = p_organization_id AND o.operation_id = given.id
        LIMIT 1
    ) AS done;

    SELECT
        array_agg(o.operation_id ORDER BY o.number),
        array_agg(o.accepted_at ORDER BY o.number),
        array_agg(
            CASE
                WHEN o.write ->> 'kind' = 'REDACT'
                THEN (o.write::jsonb || jsonb_build_object('accepted_at', o.accepted_at))::json
                WHEN NOT p_is_marked
                    AND is_redacted_since(p_organization_id, o.write, o.accepted_at)
                THEN redacted_write(o.write)
                ELSE o.write
            END
            ORDER BY o.number
        ),
        array_agg(o.write ->> 'id' ORDER BY o.number)
    INTO v_ids, v_accepted, v_writes, v_appointment_ids
    FROM (
        SELECT DISTINCT ON (given.operation_id) given.*
        FROM ROWS FROM (
            json_to_recordset(p_operations)
            AS (operation_id uuid, accepted_at timestamptz, write json)
        ) WITH ORDINALITY AS given (operation_id, accepted_at, write, number)
        ORDER BY given.operation_id, given.number
    ) AS o
    WHERE o.operation_id <> ALL (v_done) AND NOT is_purged_since(p_organization_id, o.accepted_at);
    IF v_ids IS NULL THEN
        PERFORM leave_organization(v_entered);
        RETURN;
    END IF;

    BEGIN
        INSERT INTO operations (
            organization_id, operation_id, accepted_at, finished_at, appointment_id,
            outcome, organization_revision, revision, conflicts, alternatives
        )
        SELECT
            p_organization_id, v_ids[r.ordinality], v_accepted[r.ordinality], clock_timestamp(),
            v_appointment_ids[r.ordinality],
            r.outcome, r.organization_revision,
            CASE WHEN r.outcome IN (
                'CREATED', 'UPDATED', 'CONFIRMED', 'CANCELLED', 'REDACTED', 'UNCHANGED', 'STALE'
            ) THEN (r.appointment).revision
                * CASE (r.appointment).state WHEN 'EXPIRED' THEN -1 ELSE 1 END END,
            r.conflicts, r.alternatives
        FROM apply_writes(p_organization_id, array_to_json(v_writes)) WITH ORDINALITY AS r;
    EXCEPTION WHEN OTHERS THEN
        -- Not supported, transaction state and rollback, schema and privileges, resources,
        -- object in use, operator intervention, system, internal.
        IF left(SQLSTATE, 2) IN ('0A', '25', '40', '42', '53', '55', '57', '58', 'XX') THEN
            RAISE;
        END IF;
        IF cardinality(v_ids) > 1 THEN
            FOR n IN 1 .. cardinality(v_ids) LOOP
                PERFORM apply_operations(p_organization_id, json_build_array(json_build_object(
                    'operation_id', v_ids[n], 'accepted_at', v_accepted[n], 'write', v_writes[n]
                )), true);
            END LOOP;
        ELSE
            GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME;
            PERFORM refuse_operation(
                p_organization_id, v_ids[1], v_accepted[1], v_writes[1],
                CASE WHEN v_constraint IS DISTINCT FROM 'appointments_no_overlap'
                    THEN SQLSTATE || ' ' || SQLERRM END
            );
        END IF;
    END;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION apply_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_operations TO appointments_service;

-- Apply queued operations of leased organizations, up to p_most in all.
--
-- leases: a JSON array of {"organization_id", "fence", "only_one"}; with only_one, the call
-- applies only the first operation of the organization.
--
-- status: DONE (nothing is queued, the lease is released), MORE (the lease is extended), BUSY
-- (another session holds the organization's lock; a call for a single lease waits for the lock
-- instead), LOST (another worker has the lease). delay: seconds since the oldest of the applied
-- operations was accepted. traces: the traceparents of those that are sampled, or NULL.
--
-- A call for several leases waits at most 50 ms for any other lock. It then fails, and nothing
-- is written.
CREATE FUNCTION apply_queued_operations(p_leases json, p_most integer, p_lease interval)
RETURNS TABLE (
    organization_id text, status text, applied integer, delay double precision, traces text []
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_leases constant integer := json_array_length(p_leases);
    -- Rows are only updated under the organization's lock, so their ctids stay valid.
    v_places tid[];
    v_operations json;
    v_oldest timestamptz;
    v_first constant bigint := advance_operation_queue();
    lease record;
BEGIN
    IF v_leases > 1 THEN
        PERFORM set_config('lock_timeout', '50ms', true);
    END IF;
    FOR lease IN
        SELECT *
        FROM json_to_recordset(p_leases) AS r (organization_id text, fence bigint, only_one boolean)
    LOOP
        organization_id := lease.organization_id;
        applied := 0;
        delay := NULL;
        traces := NULL;
        PERFORM FROM operation_leases l
        WHERE l.organization_id = lease.organization_id AND l.fence = lease.fence
        FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            status := 'LOST';
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- Before the queue is read, since a redaction changes what is queued.
        IF v_leases = 1 THEN
            PERFORM pg_advisory_xact_lock(organization_lock_key(lease.organization_id));
        ELSIF NOT pg_try_advisory_xact_lock(organization_lock_key(lease.organization_id)) THEN
            status := 'BUSY';
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT
            array_agg(o.place),
            json_agg(json_build_object(
                'operation_id', o.operation_id, 'accepted_at', o.accepted_at, 'write', o.write
            )),
            min(o.accepted_at),
            array_agg(o.write ->> 'trace') FILTER (WHERE o.write ->> 'trace' IS NOT NULL)
        INTO v_places, v_operations, v_oldest, traces
        FROM (
            SELECT q.ctid AS place, q.operation_id, q.accepted_at, q.write
            FROM queued_operations q
            WHERE q.organization_id = lease.organization_id AND q.sequence >= v_first
            ORDER BY q.sequence
            LIMIT CASE WHEN lease.only_one THEN 1 ELSE greatest(p_most / v_leases, 1) END
        ) AS o;
        IF v_places IS NOT NULL THEN
            PERFORM apply_operations(lease.organization_id, v_operations, true);
            -- By ctid. By key, the planner could choose an index scan of all the organization's
            -- rows, whose estimated cost can be the same.
            DELETE FROM queued_operations q
            WHERE q.ctid = ANY (v_places);
            applied := cardinality(v_places);
            delay := extract(epoch FROM clock_timestamp() - v_oldest);
        END IF;
        PERFORM FROM queued_operations q
        WHERE q.organization_id = lease.organization_id AND q.sequence >= v_first
        ORDER BY q.sequence
        LIMIT 1;
        status := CASE WHEN FOUND THEN 'MORE' ELSE 'DONE' END;
        UPDATE operation_leases l
        SET attempts = 0,
            leased_until = CASE WHEN status = 'MORE' THEN clock_timestamp() + p_lease
                ELSE '-infinity' END
        WHERE l.organization_id = lease.organization_id;
        RETURN NEXT;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_queued_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_queued_operations TO appointments_service;

-- Finish the first queued operation of a leased organization as FAILED, because no call for it
-- got a response. Return its id, or NULL if the lease is lost or nothing is queued.
CREATE FUNCTION give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
RETURNS uuid
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
DECLARE
    c_start constant bigint := first_queued_sequence();
    first record;
BEGIN
    PERFORM check_organization(p_organization_id);
    UPDATE operation_leases l
    SET attempts = 0
    WHERE l.organization_id = p_organization_id AND l.fence = p_fence;
    IF FOUND THEN
        -- Before the queue is read, since a redaction changes what is queued.
        PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
        SELECT q.* INTO first
        FROM queued_operations q
        WHERE q.organization_id = p_organization_id AND q.sequence >= c_start
        ORDER BY q.sequence
        LIMIT 1;
        -- Nobody else deletes it, as the lease is held.
        IF FOUND THEN
            DELETE FROM queued_operations q
            WHERE q.organization_id = p_organization_id
                AND q.sequence BETWEEN first.sequence AND first.sequence;
            PERFORM refuse_operation(
                p_organization_id, first.operation_id, first.accepted_at, first.write, p_failure
            );
            RETURN first.operation_id;
        END IF;
    END IF;
    RETURN NULL;
END
$$;

REVOKE ALL ON FUNCTION give_up_operation FROM PUBLIC;
GRANT EXECUTE ON FUNCTION give_up_operation TO appointments_service;

-- Release leases that are still held: the organizations can be leased again after a delay (seconds).
--
-- leases: a JSON array of {"organization_id", "fence", "attempts", "delay"}.
CREATE FUNCTION release_operations(p_leases json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    v_now constant timestamptz := clock_timestamp();
    v_until timestamptz;
    lease record;
BEGIN
    PERFORM require_no_organization();
    FOR lease IN
        SELECT *
        FROM json_to_recordset(p_leases)
            AS r (organization_id text, fence bigint, attempts integer, delay double precision)
        ORDER BY r.organization_id
    LOOP
        v_until := v_now + make_interval(secs => lease.delay);
        UPDATE operation_leases l
        SET leased_until = v_until, attempts = lease.attempts
        WHERE l.organization_id = lease.organization_id AND l.fence = lease.fence;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION release_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION release_operations TO appointments_service;

-- Webhooks

-- Store a webhook that starts after a revision, by default the organization's latest, unless
-- the organization already has p_most webhooks. Calls for one organization are serialized by a
-- lock, so that the limit is never exceeded.
--
-- outcome: CREATED, LIMIT_REACHED, or BEYOND for a revision that does not exist yet.
CREATE FUNCTION create_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_url text,
    p_description text,
    p_changes text [],
    p_disabled boolean,
    p_header_names text [],
    p_header_values text [],
    p_secret text,
    p_after_revision bigint,
    p_most integer,
    -- The default is for programs of the previous version.
    p_resource_id text DEFAULT NULL
)
RETURNS TABLE (outcome text, organization_revision bigint)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_revision bigint;
    v_webhooks bigint;
BEGIN
    -- With another seed than the lock of the writes.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236006));

    SELECT coalesce(max(o.revision), 0) INTO v_revision
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    SELECT count(*) INTO v_webhooks FROM webhooks w WHERE w.organization_id = p_organization_id;

    IF p_after_revision > v_revision THEN
        RETURN QUERY SELECT 'BEYOND', v_revision;
    ELSIF p_most <= v_webhooks THEN
        RETURN QUERY SELECT 'LIMIT_REACHED', v_revision;
    ELSE
        INSERT INTO webhooks (
            organization_id, webhook_id, url, description, changes, header_names, header_values,
            secret, disabled, created_at, updated_at, cursor_revision, next_attempt_at,
            resource_id
        ) VALUES (
            p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_header_names,
            p_header_values, p_secret, p_disabled, now(), now(),
            coalesce(p_after_revision, v_revision), now(), p_resource_id
        );
        RETURN QUERY SELECT 'CREATED', v_revision;
    END IF;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION create_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook TO appointments_service, appointments_caller;

-- Replace the columns of a webhook that a caller sets. A header whose value is NULL keeps the
-- value that is stored for its name, compared case-insensitively. A change that waits for its
-- next attempt is sent at once, as the URL may be new.
--
-- Returns no row if there is no such webhook. Otherwise returns NULL, or the position (from 1)
-- of the first header that has no stored value to keep; nothing is replaced then.
CREATE FUNCTION replace_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_url text,
    p_description text,
    p_changes text [],
    p_disabled boolean,
    p_header_names text [],
    p_header_values text [],
    p_resource_id text DEFAULT NULL
)
RETURNS SETOF integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_names text [];
    v_values text [];
    v_missing integer;
BEGIN
    SELECT w.header_names, w.header_values INTO v_names, v_values
    FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id
    FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leave_organization(v_entered);
        RETURN;
    END IF;

    v_values := ARRAY(
        SELECT coalesce(given.value, stored.value)
        FROM unnest(p_header_names, p_header_values)
            WITH ORDINALITY AS given (name, value, place)
        LEFT JOIN unnest(v_names, v_values) AS stored (name, value)
            ON lower(stored.name) = lower(given.name)
        ORDER BY given.place
    );
    v_missing := array_position(v_values, NULL);
    IF v_missing IS NULL THEN
        UPDATE webhooks w
        SET url = p_url,
            description = p_description,
            changes = p_changes,
            resource_id = p_resource_id,
            disabled = p_disabled,
            disabled_reason = CASE WHEN p_disabled THEN w.disabled_reason ELSE '' END,
            header_names = p_header_names,
            header_values = v_values,
            attempts = 0,
            failing_since = NULL,
            next_attempt_at = now(),
            updated_at = now()
        WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    END IF;
    PERFORM leave_organization(v_entered);
    RETURN NEXT v_missing;
END
$$;

REVOKE ALL ON FUNCTION replace_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replace_webhook TO appointments_service, appointments_caller;

-- Store a new secret. The previous one also signs for p_overlap more seconds. Only the latest
-- four old secrets are kept, since each adds a signature to every request. Returns whether the
-- webhook exists.
CREATE FUNCTION rotate_webhook_secret(
    p_organization_id text, p_webhook_id text, p_secret text, p_overlap double precision
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_exists boolean;
BEGIN
    UPDATE webhooks w
    SET secret = p_secret,
        old_secrets = (array_prepend(w.secret, w.old_secrets))[1:4],
        old_secrets_until = (array_prepend(
            now() + make_interval(secs => p_overlap), w.old_secrets_until
        ))[1:4],
        updated_at = now()
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    v_exists := found;
    PERFORM leave_organization(v_entered);
    RETURN v_exists;
END
$$;

REVOKE ALL ON FUNCTION rotate_webhook_secret FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rotate_webhook_secret TO appointments_service, appointments_caller;

-- Delete a webhook. Returns whether it existed.
CREATE FUNCTION delete_webhook(p_organization_id text, p_webhook_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_existed boolean;
BEGIN
    DELETE FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    v_existed := found;
    PERFORM leave_organization(v_entered);
    RETURN v_existed;
END
$$;

REVOKE ALL ON FUNCTION delete_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_webhook TO appointments_service, appointments_caller;

-- Let a webhook send all changes after a revision again, and enable it. A worker that is sending
-- to it notices that the cursor has changed, and stops. Returns whether it was done: the webhook
-- exists, and so does the revision.
CREATE FUNCTION replay_webhook(p_organization_id text, p_webhook_id text, p_after bigint)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_revision bigint;
    v_done boolean;
BEGIN
    SELECT coalesce(max(o.revision), 0) INTO v_revision
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    UPDATE webhooks w
    SET cursor_revision = p_after,
        disabled = false,
        disabled_reason = '',
        attempts = 0,
        failing_since = NULL,
        next_attempt_at = now(),
        updated_at = now()
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND p_after <= v_revision;
    v_done := found;
    PERFORM leave_organization(v_entered);
    RETURN v_done;
END
$$;

REVOKE ALL ON FUNCTION replay_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replay_webhook TO appointments_service, appointments_caller;

-- Return the ids of the keys that encrypt secrets and header values of webhooks, '' for those that
-- are stored as plain text. service/webhooks/encryption.py has the format.
CREATE FUNCTION webhook_key_ids()
RETURNS SETOF text
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    WITH webhook AS MATERIALIZED (
        SELECT w.secret || w.old_secrets || w.header_values AS stored FROM webhooks w
    )
    SELECT DISTINCT
        CASE WHEN stored.value LIKE 'encrypted§%' THEN split_part(stored.value, '§', 2) ELSE '' END
    FROM webhook
    CROSS JOIN LATERAL unnest(webhook.stored) AS stored (value);
END
$$;

REVOKE ALL ON FUNCTION webhook_key_ids FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhook_key_ids TO appointments_service, appointments_caller;

-- Return whether a value is not encrypted by a key.
CREATE FUNCTION lacks_key(p_values text [], p_key_id text)
RETURNS boolean
LANGUAGE sql
IMMUTABLE
SET search_path = public, pg_temp
AS $$
    SELECT NOT coalesce(bool_and(starts_with(stored.value, 'encrypted§' || p_key_id || '§')), true)
    FROM unnest(p_values) AS stored (value)
$$;

REVOKE ALL ON FUNCTION lacks_key FROM PUBLIC;

-- Return the next webhooks, by organization and id, that have a value not encrypted by a key:
-- their secrets, the current one first, and header values.
CREATE FUNCTION webhooks_without_key(
    p_key_id text, p_after_organization_id text, p_after_webhook_id text, p_most integer
)
RETURNS TABLE (organization_id text, webhook_id text, secrets text [], header_values text [])
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT w.organization_id, w.webhook_id, w.secret || w.old_secrets, w.header_values
    FROM webhooks w
    WHERE (w.organization_id, w.webhook_id) > (p_after_organization_id, p_after_webhook_id)
        AND lacks_key(w.secret || w.old_secrets || w.header_values, p_key_id)
    ORDER BY w.organization_id, w.webhook_id
    LIMIT p_most;
END
$$;

REVOKE ALL ON FUNCTION webhooks_without_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhooks_without_key TO appointments_service;

-- Replace the stored form of a webhook's secrets and header values, unless they have changed since
-- they were read. Returns whether they were replaced. The webhook stays the same, so its
-- deliveries go on.
CREATE FUNCTION reencrypt_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_secrets text [],
    p_header_values text [],
    p_new_secrets text [],
    p_new_header_values text []
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_done boolean;
BEGIN
    UPDATE webhooks w
    SET secret = p_new_secrets[1],
        old_secrets = p_new_secrets[2:],
        header_values = p_new_header_values
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND w.secret || w.old_secrets = p_secrets
        AND w.header_values = p_header_values;
    v_done := found;
    PERFORM leave_organization(v_entered);
    RETURN v_done;
END
$$;

REVOKE ALL ON FUNCTION reencrypt_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reencrypt_webhook TO appointments_service;

-- Return the secrets that sign, and the values of the caller's own headers. The service's role
-- can read them only by this function, as it has no privilege on these columns. Volatile, so
-- that it sees the row as changed by the calling statement.
CREATE FUNCTION webhook_secrets(p_organization_id text, p_webhook_id text)
RETURNS TABLE (live_secrets text [], header_values text [])
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    w record;
BEGIN
    SELECT x.secret, x.old_secrets, x.old_secrets_until, x.header_values INTO w
    FROM webhooks x
    WHERE x.organization_id = p_organization_id AND x.webhook_id = p_webhook_id;
    IF FOUND THEN
        live_secrets := array_prepend(w.secret, ARRAY(
            SELECT old.secret
            FROM unnest(w.old_secrets, w.old_secrets_until) AS old (secret, until)
            WHERE old.until > now()
        ));
        header_values := w.header_values;
        RETURN NEXT;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION webhook_secrets FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhook_secrets TO appointments_service;

-- Lease webhooks that are due, for p_lease seconds: at most p_slots, and p_failing_slots whose last
-- attempt failed. service/webhooks/claims.py describes leases.
--
-- The index returns webhooks in the order in which they became due. The organization's row is
-- looked up for each, so the cost does not depend on the number of organizations. The secrets are read
-- for rows that are locked, so that they belong to the URL and header names returned with them.
CREATE FUNCTION claim_webhooks(
    p_slots integer, p_failing_slots integer, p_lease double precision
)
RETURNS TABLE (
    organization_id text,
    webhook_id text,
    fence bigint,
    url text,
    changes text [],
    resource_id text,
    live_secrets text [],
    header_names text [],
    header_values text [],
    disabled boolean,
    cursor_revision bigint,
    attempts integer,
    updated_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    WITH due AS MATERIALIZED (
        SELECT w.organization_id, w.webhook_id
        FROM webhooks w
        WHERE NOT w.disabled
            AND w.attempts = 0
            AND w.next_attempt_at <= now()
            AND w.leased_until <= now()
            AND w.cursor_revision < (
                SELECT o.revision FROM organizations o WHERE o.organization_id = w.organization_id
            )
        ORDER BY w.next_attempt_at
        LIMIT p_slots
        FOR UPDATE OF w SKIP LOCKED
    ),
    failing AS MATERIALIZED (
        SELECT w.organization_id, w.webhook_id
        FROM webhooks w
        WHERE NOT w.disabled
            AND w.attempts > 0
            AND w.next_attempt_at <= now()
            AND w.leased_until <= now()
            AND w.cursor_revision < (
                SELECT o.revision FROM organizations o WHERE o.organization_id = w.organization_id
            )
        ORDER BY w.next_attempt_at
        LIMIT p_failing_slots
        FOR UPDATE OF w SKIP LOCKED
    ),
    claimed AS (
        UPDATE webhooks w
        SET leased_until = now() + make_interval(secs => p_lease), fence = w.fence + 1
        FROM (
            SELECT due.organization_id, due.webhook_id FROM due
            UNION ALL
            SELECT failing.organization_id, failing.webhook_id FROM failing
        ) AS chosen
        WHERE w.organization_id = chosen.organization_id AND w.webhook_id = chosen.webhook_id
        RETURNING w.*
    )
    SELECT
        w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.resource_id,
        found.live_secrets, w.header_names, found.header_values, w.disabled, w.cursor_revision,
        w.attempts, w.updated_at
    FROM claimed AS w
    CROSS JOIN LATERAL webhook_secrets(w.organization_id, w.webhook_id) AS found;
END
$$;

REVOKE ALL ON FUNCTION claim_webhooks FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_webhooks TO appointments_service;

-- Add requests of a webhook to the log of deliveries.
--
-- sent: a JSON array of {"revision", "attempt", "seconds_ago", "duration_ms", "http_status", "error"}.
CREATE FUNCTION log_deliveries(p_organization_id text, p_webhook_id text, p_sent json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_attempted_at timestamptz;
    sent record;
BEGIN
    FOR sent IN
        SELECT *
        FROM json_to_recordset(p_sent) AS r (
            revision bigint, attempt integer, seconds_ago double precision,
            duration_ms integer, http_status integer, error text
        )
    LOOP
        v_attempted_at := now() - make_interval(secs => sent.seconds_ago);
        INSERT INTO webhook_deliveries (
            organization_id, webhook_id, revision, attempt, attempted_at, duration_ms,
            http_status, error
        ) VALUES (
            p_organization_id, p_webhook_id, sent.revision, sent.attempt, v_attempted_at,
            sent.duration_ms, sent.http_status, sent.error
        );
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION log_deliveries FROM PUBLIC;

-- Record that every change up to p_reached was delivered or skipped. The lease is renewed, for p_lease
-- seconds, or ended (p_release). Returns the webhook as it is now, as claim_webhooks does. Returns no
-- row, and records nothing, if the claim is over: the lease was lost, or the webhook was replayed.
CREATE FUNCTION advance_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_fence bigint,
    p_cursor bigint,
    p_reached bigint,
    p_release boolean,
    p_lease double precision,
    p_sent json
)
RETURNS TABLE (
    organization_id text,
    webhook_id text,
    fence bigint,
    url text,
    changes text [],
    resource_id text,
    live_secrets text [],
    header_names text [],
    header_values text [],
    disabled boolean,
    cursor_revision bigint,
    attempts integer,
    updated_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_leased_until timestamptz := '-infinity';
    v_next_attempt_at timestamptz := now();
BEGIN
    IF NOT p_release THEN
        v_leased_until := now() + make_interval(secs => p_lease);
        v_next_attempt_at := NULL;
    END IF;
    UPDATE webhooks w
    SET cursor_revision = p_reached,
        attempts = 0,
        failing_since = NULL,
        leased_until = v_leased_until,
        next_attempt_at = coalesce(v_next_attempt_at, w.next_attempt_at)
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND w.fence = p_fence
        AND w.cursor_revision = p_cursor
    RETURNING
        w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.resource_id,
        w.header_names, w.disabled, w.cursor_revision, w.attempts, w.updated_at
    INTO
        organization_id, webhook_id, fence, url, changes, resource_id,
        header_names, disabled, cursor_revision, attempts, updated_at;
    IF FOUND THEN
        PERFORM log_deliveries(p_organization_id, p_webhook_id, p_sent);
        SELECT s.live_secrets, s.header_values INTO live_secrets, header_values
        FROM webhook_secrets(p_organization_id, p_webhook_id) AS s;
        RETURN NEXT;
    END IF;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION advance_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advance_webhook TO appointments_service;

-- Record that sending a change failed, and end the lease. The next attempt is after p_wait seconds.
-- The webhook is disabled if it is gone (p_gone) or has failed for p_give_up_after seconds. A webhook
-- that was updated since it was claimed (p_updated_at) is due at once instead. p_sent has the failed
-- request alone. Returns the same as advance_webhook.
CREATE FUNCTION fail_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_fence bigint,
    p_cursor bigint,
    p_updated_at timestamptz,
    p_wait double precision,
    p_gone boolean,
    p_give_up_after double precision,
    p_sent json
)
RETURNS TABLE (
    organization_id text,
    webhook_id text,
    fence bigint,
    url text,
    changes text [],
    resource_id text,
    live_secrets text [],
    header_names text [],
    header_values text [],
    disabled boolean,
    cursor_revision bigint,
    attempts integer,
    updated_at timestamptz
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_given_up boolean;
    v_failing_since timestamptz;
    v_next_attempt_at timestamptz;
    v_reason text;
BEGIN
    SELECT
        w.fence, w.url, w.changes, w.resource_id, w.header_names, w.disabled, w.cursor_revision,
        w.attempts, w.updated_at, w.failing_since, w.next_attempt_at, w.disabled_reason
    INTO
        fence, url, changes, resource_id, header_names, disabled, cursor_revision,
        attempts, updated_at, v_failing_since, v_next_attempt_at, v_reason
    FROM webhooks w
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND w.fence = p_fence
        AND w.cursor_revision = p_cursor
    FOR UPDATE;
    IF FOUND THEN
        IF updated_at = p_updated_at THEN
            v_given_up := coalesce(
                v_failing_since <= now() - make_interval(secs => p_give_up_after),
                p_give_up_after <= 0
            );
            IF NOT disabled AND (p_gone OR v_given_up) THEN
                disabled := true;
                v_reason := CASE WHEN p_gone THEN 'the receiver answered 410 Gone'
                    WHEN v_failing_since IS NULL THEN ''
                    ELSE 'revision ' || (p_sent -> 0 ->> 'revision')
                        || ' could not be delivered since '
                        || to_char(v_failing_since, 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                        || '; at last: ' || (p_sent -> 0 ->> 'error')
                    END;
            END IF;
            attempts := attempts + 1;
            v_failing_since := coalesce(v_failing_since, now());
            v_next_attempt_at := now() + make_interval(secs => p_wait);
        END IF;
        UPDATE webhooks w
        SET leased_until = '-infinity',
            attempts = fail_webhook.attempts,
            failing_since = v_failing_since,
            next_attempt_at = v_next_attempt_at,
            disabled = fail_webhook.disabled,
            disabled_reason = v_reason
        WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
        PERFORM log_deliveries(p_organization_id, p_webhook_id, p_sent);
        SELECT s.live_secrets, s.header_values INTO live_secrets, header_values
        FROM webhook_secrets(p_organization_id, p_webhook_id) AS s;
        organization_id := p_organization_id;
        webhook_id := p_webhook_id;
        RETURN NEXT;
    END IF;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION fail_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION fail_webhook TO appointments_service;

-- End a lease that is still held. The webhook is due after p_wait seconds.
CREATE FUNCTION release_webhook(
    p_organization_id text, p_webhook_id text, p_fence bigint, p_wait double precision
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_earliest constant timestamptz := now() + make_interval(secs => p_wait);
BEGIN
    UPDATE webhooks w
    SET leased_until = '-infinity', next_attempt_at = greatest(w.next_attempt_at, v_earliest)
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND w.fence = p_fence;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION release_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION release_webhook TO appointments_service;

-- Events

-- Move the cursors of a publisher forward and renew its lease, for p_lease seconds. Returns false, with
-- nothing moved, if the lease was lost. Renewing it locks the publisher's row until the end of the
-- transaction: if another worker took over before that, nothing is done; otherwise the takeover waits.
CREATE FUNCTION advance_cursors(
    p_consumer text,
    p_fence bigint,
    p_lease double precision,
    p_organization_ids text [],
    p_revisions bigint []
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM require_no_organization();
    UPDATE event_publishers p
    SET leased_until = clock_timestamp() + p_lease * interval '1 second'
    WHERE p.consumer = p_consumer AND p.fence = p_fence;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO event_cursors AS stored (organization_id, consumer, revision)
    SELECT given.organization_id, p_consumer, given.revision
    FROM unnest(p_organization_ids, p_revisions) AS given (organization_id, revision)
    ON CONFLICT (organization_id, consumer) DO UPDATE
    SET revision = excluded.revision
    WHERE stored.revision < excluded.revision;
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION advance_cursors FROM PUBLIC;
GRANT EXECUTE ON FUNCTION advance_cursors TO appointments_service;

-- Access

-- Number a change of an API key, in the order of the commits: the lock is held until the commit.
-- So whoever has read all changes up to a number reads the later ones, and misses none. That
-- would not see a deletion, so a key must have been revoked for a minute before.
CREATE FUNCTION number_api_key()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF old.revoked_at IS NULL OR old.revoked_at > now() - interval '1 minute' THEN
            RAISE EXCEPTION 'revoke the API key % and delete it a minute later', old.key_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
        RETURN old;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('api_keys', 7236003));
    new.version := nextval('api_key_versions');
    RETURN new;
END
$$;

REVOKE ALL ON FUNCTION number_api_key FROM PUBLIC;
CREATE OR REPLACE TRIGGER api_keys_numbered BEFORE INSERT OR UPDATE OR DELETE ON api_keys
FOR EACH ROW EXECUTE FUNCTION number_api_key();
