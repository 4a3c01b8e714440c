-- migrate:up

-- Another result of apply_queued_operations. A call that is under way when it is replaced may fail once.
-- squawk-ignore-file ban-drop-function

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- The W3C traceparent of the call that made the change, NULL if it was not sampled. Writes that are queued
-- have it in the member trace, which functions of the previous version ignore.
ALTER TABLE appointment_history
ADD COLUMN trace_context text,
ALTER COLUMN trace_context SET STATISTICS 0;
CREATE OR REPLACE VIEW own.appointment_history AS
SELECT * FROM public.appointment_history
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

DROP FUNCTION apply_queued_operations(json,integer,interval);

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
CREATE OR REPLACE FUNCTION apply_writes(
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
                PERFORM FROM erased_keys e
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

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

DROP FUNCTION apply_queued_operations(json,integer,interval);

CREATE OR REPLACE FUNCTION public.apply_writes(p_organization_id text, p_writes json, p_check_overlap boolean DEFAULT true)
 RETURNS TABLE(outcome text, organization_revision bigint, lock_wait double precision, conflicts json, alternatives json, appointment appointments)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_sort TO 'off'
 SET jit TO 'off'
AS $function$
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
            accepted_at timestamptz
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
                PERFORM FROM erased_keys e
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
                created_at, updated_at, hold_until, state, version, placed
            ) VALUES (
                p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                w.idempotency_key,
                CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                stored.appointment_id, stored.resource_id, stored.additional_resource_ids,
                v_released, stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.hold_until, stored.state, stored.version,
                v_placed
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
$function$;

REVOKE ALL ON FUNCTION apply_writes(text,json,boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_writes(text,json,boolean) TO appointments_caller;
GRANT EXECUTE ON FUNCTION apply_writes(text,json,boolean) TO appointments_service;

CREATE OR REPLACE FUNCTION public.apply_queued_operations(p_leases json, p_most integer, p_lease interval)
 RETURNS TABLE(organization_id text, status text, applied integer, delay double precision)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
 SET enable_sort TO 'off'
AS $function$
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
            min(o.accepted_at)
        INTO v_places, v_operations, v_oldest
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
$function$;

REVOKE ALL ON FUNCTION apply_queued_operations(json,integer,interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_queued_operations(json,integer,interval) TO appointments_service;

DROP VIEW own.appointment_history;
ALTER TABLE appointment_history DROP COLUMN trace_context;
CREATE VIEW own.appointment_history AS
SELECT * FROM public.appointment_history
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;
GRANT SELECT ON own.appointment_history TO appointments_service, appointments_caller;
