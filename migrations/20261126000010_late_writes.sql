-- migrate:up

-- Writers queue up behind a lock that is waited for: better to fail, and be started again.
SET LOCAL lock_timeout = '2s';

-- Writes with an idempotency key that changed nothing, UNCHANGED or STALE: what the history
-- is for those that did. A key is in one of the two at most, and is kept for ever.
CREATE TABLE unchanged_writes (
    organization_id text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    idempotency_digest bytea NOT NULL,
    outcome text NOT NULL,
    -- The entry of the history that has the appointment as it was answered.
    revision bigint NOT NULL,
    CONSTRAINT unchanged_writes_pkey PRIMARY KEY (organization_id, idempotency_key),
    CONSTRAINT unchanged_writes_outcome_known CHECK (outcome IN ('UNCHANGED', 'STALE'))
);

GRANT SELECT, INSERT ON unchanged_writes TO appointments_service;

-- The updated_at that the cancel of a cancelled appointment came with, if any: guards
-- against stale writes as that of the content does, and is never older.
ALTER TABLE appointments ADD COLUMN cancel_updated_at timestamptz;

-- The one way to change an appointment: applies a batch of writes of one organization,
-- in order, each seeing those before it, and returns one row a write.
--
-- The organization's advisory lock is taken first and held to the end of the
-- transaction. Every statement after it has a snapshot of its own and so sees all that
-- earlier holders committed; that is true in READ COMMITTED only, so any other
-- isolation level is refused.
--
-- writes: a JSON array of objects with the columns of the record below. The caller has
-- checked the fields' rules. An expected_revision of 0 means any that is stored. A cancel's
-- updated_at is kept as cancel_updated_at.
--
-- outcome: what the write did (CREATED, UPDATED, UNCHANGED, STALE, CANCELLED) with the
-- appointment as stored after it, or why it was refused (APPOINTMENT_NOT_FOUND,
-- APPOINTMENT_EXISTS, ETAG_MISMATCH, IDEMPOTENCY_KEY_REUSED, TIME_RANGE_CONFLICT) with
-- conflicts, if that is the reason, as a JSON array of at most 21. A write under the key
-- of an earlier one that was not refused, and the same, gets that one's outcome and
-- appointment.
--
-- An overlap that this function does not see (hand-written SQL in an open transaction)
-- ends the whole call with the exclusion constraint's error.
CREATE OR REPLACE FUNCTION apply_writes(p_organization_id text, p_writes json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    appointment_id text,
    resource_id text,
    start_time timestamptz,
    end_time timestamptz,
    title text,
    attributes json,
    created_at timestamptz,
    updated_at timestamptz,
    state text,
    version integer,
    revision bigint,
    conflicts json
)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    v_recorded_at timestamptz;
    v_revision bigint;
    v_first_revision bigint;
    v_lock_wait double precision;
    v_outcome text;
    v_conflicts json;
    v_exists boolean;
    v_changed boolean;
    v_store boolean;
    w record;
    neighbour record;
    keyed appointment_history%ROWTYPE;
    unchanged unchanged_writes%ROWTYPE;
    stored appointments%ROWTYPE;
    -- The caller's own time of what is stored, the cancel included; NULL if it gave none.
    v_guard timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    -- The seed keeps these keys apart from other users of 64-bit advisory locks.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236001));
    v_lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT o.revision, greatest(o.recorded_at, clock_timestamp())
    INTO v_revision, v_recorded_at
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    IF NOT FOUND THEN
        v_revision := 0;
        v_recorded_at := clock_timestamp();
    END IF;
    v_first_revision := v_revision;

    FOR w IN
        SELECT *
        FROM json_to_recordset(p_writes) AS r (
            kind text,
            id text,
            resource_id text,
            start_time timestamptz,
            end_time timestamptz,
            title text,
            attributes json,
            created_at timestamptz,
            updated_at timestamptz,
            expected_revision bigint,
            create_only boolean,
            idempotency_key text,
            idempotency_digest text,
            actor text,
            validate_only boolean
        )
    LOOP
        v_outcome := NULL;
        v_conflicts := NULL;
        v_changed := false;
        v_store := false;

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
                        AND h.revision BETWEEN unchanged.revision AND unchanged.revision
                    ORDER BY h.revision;
                    keyed.change := unchanged.outcome;
                    keyed.idempotency_digest := unchanged.idempotency_digest;
                END IF;
            END IF;
            IF FOUND THEN
                IF keyed.idempotency_digest = decode(w.idempotency_digest, 'hex') THEN
                    RETURN QUERY SELECT
                        keyed.change, v_revision, v_lock_wait,
                        keyed.appointment_id, keyed.resource_id, keyed.start_time, keyed.end_time,
                        keyed.title, keyed.attributes, keyed.created_at, keyed.updated_at,
                        keyed.state, keyed.version, keyed.revision, NULL::json;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            END IF;
        END IF;

        -- By the order of the primary key: an equality looks as cheap along another index.
        SELECT a.* INTO stored
        FROM appointments a
        WHERE a.organization_id = p_organization_id AND a.appointment_id BETWEEN w.id AND w.id
        ORDER BY a.appointment_id;
        v_exists := FOUND;
        v_guard := coalesce(
            stored.cancel_updated_at, CASE WHEN stored.updated_at_given THEN stored.updated_at END
        );

        IF v_outcome IS NOT NULL THEN
            NULL;
        ELSIF w.kind = 'CANCEL' AND NOT v_exists THEN
            v_outcome := 'APPOINTMENT_NOT_FOUND';
        ELSIF w.expected_revision IS NOT NULL
            AND (NOT v_exists OR w.expected_revision NOT IN (0, stored.revision)) THEN
            v_outcome := 'ETAG_MISMATCH';
        ELSIF w.create_only AND v_exists THEN
            v_outcome := 'APPOINTMENT_EXISTS';
        ELSIF w.updated_at < v_guard
            OR w.updated_at = v_guard AND stored.state = 'CANCELLED' AND w.kind <> 'CANCEL' THEN
            v_outcome := 'STALE';
        ELSIF w.kind = 'CANCEL' THEN
            IF stored.state = 'CANCELLED' THEN
                v_outcome := 'UNCHANGED';
                -- Nothing that is shown changes; an update made between the two is stale.
                IF coalesce(w.updated_at > v_guard, w.updated_at IS NOT NULL) THEN
                    stored.cancel_updated_at := w.updated_at;
                    v_store := NOT w.validate_only;
                END IF;
            END IF;
        ELSIF v_exists AND stored.state = 'ACTIVE'
            AND stored.resource_id = w.resource_id
            AND stored.start_time = w.start_time
            AND stored.end_time = w.end_time
            AND stored.title = w.title
            AND stored.attributes::text = w.attributes::text
            AND (w.created_at IS NULL OR w.created_at = stored.created_at)
            AND (w.updated_at IS NULL OR w.updated_at = stored.updated_at) THEN
            v_outcome := 'UNCHANGED';
        ELSE
            -- Active ranges of a resource never overlap, so of all that start before the
            -- new end only the last can reach into the new range.
            -- The row comparison leaves the planner one index that has the order; what it
            -- finds may be another resource's last.
            SELECT a.resource_id, a.end_time INTO neighbour
            FROM appointments a
            WHERE a.organization_id = p_organization_id
                AND (a.resource_id, a.start_time) < (w.resource_id, w.end_time)
                AND a.state = 'ACTIVE'
                AND a.appointment_id <> w.id
            ORDER BY a.resource_id DESC, a.start_time DESC
            LIMIT 1;
            IF neighbour.resource_id = w.resource_id AND neighbour.end_time > w.start_time THEN
                v_outcome := 'TIME_RANGE_CONFLICT';
                v_conflicts := overlapping_appointments(
                    p_organization_id, w.resource_id, w.id, w.start_time, w.end_time
                );
            END IF;
        END IF;

        IF v_outcome IS NULL THEN
            IF w.kind = 'CANCEL' THEN
                v_outcome := 'CANCELLED';
                stored.state := 'CANCELLED';
                stored.cancel_updated_at := w.updated_at;
            ELSE
                v_outcome := CASE WHEN v_exists THEN 'UPDATED' ELSE 'CREATED' END;
                stored.organization_id := p_organization_id;
                stored.appointment_id := w.id;
                stored.resource_id := w.resource_id;
                stored.start_time := w.start_time;
                stored.end_time := w.end_time;
                stored.title := w.title;
                stored.attributes := w.attributes;
                stored.created_at := coalesce(w.created_at, stored.created_at, v_recorded_at);
                stored.updated_at := coalesce(w.updated_at, v_recorded_at);
                stored.updated_at_given := w.updated_at IS NOT NULL;
                stored.cancel_updated_at := NULL;
                stored.state := 'ACTIVE';
            END IF;
            stored.version := coalesce(stored.version, 0) + 1;
            -- A revision, and so an etag, is given to nothing but what is written.
            stored.revision := CASE WHEN w.validate_only THEN 0 ELSE v_revision + 1 END;

            v_changed := NOT w.validate_only;
            v_store := v_changed;
        END IF;

        IF v_store THEN
            -- The conflict is looked for by the primary key, whatever else looks cheap.
            INSERT INTO appointments (
                organization_id, appointment_id, resource_id, start_time, end_time, title,
                attributes, created_at, updated_at, updated_at_given, cancel_updated_at,
                state, version, revision
            ) VALUES (
                p_organization_id, w.id, stored.resource_id, stored.start_time, stored.end_time,
                stored.title, stored.attributes, stored.created_at, stored.updated_at,
                stored.updated_at_given, stored.cancel_updated_at,
                stored.state, stored.version, stored.revision
            )
            ON CONFLICT (organization_id, appointment_id) DO UPDATE
            SET resource_id = excluded.resource_id,
                start_time = excluded.start_time,
                end_time = excluded.end_time,
                title = excluded.title,
                attributes = excluded.attributes,
                created_at = excluded.created_at,
                updated_at = excluded.updated_at,
                updated_at_given = excluded.updated_at_given,
                cancel_updated_at = excluded.cancel_updated_at,
                state = excluded.state,
                version = excluded.version,
                revision = excluded.revision;
        END IF;
        IF v_changed THEN
            v_revision := v_revision + 1;
            INSERT INTO appointment_history (
                organization_id, revision, change, recorded_at, actor,
                idempotency_key, idempotency_digest,
                appointment_id, resource_id, start_time, end_time, title, attributes,
                created_at, updated_at, state, version
            ) VALUES (
                p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                w.idempotency_key,
                CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                stored.appointment_id, stored.resource_id, stored.start_time, stored.end_time,
                stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.state, stored.version
            );
        ELSIF w.idempotency_key IS NOT NULL AND v_outcome IN ('UNCHANGED', 'STALE')
            AND NOT w.validate_only THEN
            INSERT INTO unchanged_writes (
                organization_id, idempotency_key, idempotency_digest, outcome, revision
            ) VALUES (
                p_organization_id, w.idempotency_key, decode(w.idempotency_digest, 'hex'),
                v_outcome, stored.revision
            );
        END IF;

        RETURN QUERY SELECT
            v_outcome, v_revision, v_lock_wait,
            stored.appointment_id, stored.resource_id, stored.start_time, stored.end_time,
            stored.title, stored.attributes, stored.created_at, stored.updated_at,
            stored.state, stored.version, stored.revision, v_conflicts;
    END LOOP;

    IF v_revision > v_first_revision THEN
        INSERT INTO organizations (organization_id, revision, recorded_at)
        VALUES (p_organization_id, v_revision, v_recorded_at)
        ON CONFLICT (organization_id) DO UPDATE
        SET revision = excluded.revision, recorded_at = excluded.recorded_at;
    END IF;
END
$$;

-- migrate:down

-- The one way to change an appointment: applies a batch of writes of one organization,
-- in order, each seeing those before it, and returns one row a write.
--
-- The organization's advisory lock is taken first and held to the end of the
-- transaction. Every statement after it has a snapshot of its own and so sees all that
-- earlier holders committed; that is true in READ COMMITTED only, so any other
-- isolation level is refused.
--
-- writes: a JSON array of objects with the columns of the record below. The caller has
-- checked the fields' rules. An expected_revision of 0 means any that is stored.
--
-- outcome: what the write did (CREATED, UPDATED, UNCHANGED, STALE, CANCELLED) with the
-- appointment as stored after it, or why it was refused (APPOINTMENT_NOT_FOUND,
-- APPOINTMENT_EXISTS, ETAG_MISMATCH, IDEMPOTENCY_KEY_REUSED, TIME_RANGE_CONFLICT) with
-- conflicts, if that is the reason, as a JSON array of at most 21.
--
-- An overlap that this function does not see (hand-written SQL in an open transaction)
-- ends the whole call with the exclusion constraint's error.
CREATE OR REPLACE FUNCTION apply_writes(p_organization_id text, p_writes json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    appointment_id text,
    resource_id text,
    start_time timestamptz,
    end_time timestamptz,
    title text,
    attributes json,
    created_at timestamptz,
    updated_at timestamptz,
    state text,
    version integer,
    revision bigint,
    conflicts json
)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    v_recorded_at timestamptz;
    v_revision bigint;
    v_first_revision bigint;
    v_lock_wait double precision;
    v_outcome text;
    v_conflicts json;
    v_exists boolean;
    w record;
    neighbour record;
    keyed appointment_history%ROWTYPE;
    stored appointments%ROWTYPE;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    -- The seed keeps these keys apart from other users of 64-bit advisory locks.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236001));
    v_lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT o.revision, greatest(o.recorded_at, clock_timestamp())
    INTO v_revision, v_recorded_at
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    IF NOT FOUND THEN
        v_revision := 0;
        v_recorded_at := clock_timestamp();
    END IF;
    v_first_revision := v_revision;

    FOR w IN
        SELECT *
        FROM json_to_recordset(p_writes) AS r (
            kind text,
            id text,
            resource_id text,
            start_time timestamptz,
            end_time timestamptz,
            title text,
            attributes json,
            created_at timestamptz,
            updated_at timestamptz,
            expected_revision bigint,
            create_only boolean,
            idempotency_key text,
            idempotency_digest text,
            actor text,
            validate_only boolean
        )
    LOOP
        v_outcome := NULL;
        v_conflicts := NULL;

        IF w.idempotency_key IS NOT NULL THEN
            SELECT h.* INTO keyed
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.idempotency_key = w.idempotency_key;
            IF FOUND THEN
                IF keyed.idempotency_digest = decode(w.idempotency_digest, 'hex') THEN
                    RETURN QUERY SELECT
                        keyed.change, v_revision, v_lock_wait,
                        keyed.appointment_id, keyed.resource_id, keyed.start_time, keyed.end_time,
                        keyed.title, keyed.attributes, keyed.created_at, keyed.updated_at,
                        keyed.state, keyed.version, keyed.revision, NULL::json;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            END IF;
        END IF;

        SELECT a.* INTO stored
        FROM appointments a
        WHERE a.organization_id = p_organization_id AND a.appointment_id = w.id;
        v_exists := FOUND;

        IF v_outcome IS NOT NULL THEN
            NULL;
        ELSIF w.kind = 'CANCEL' AND NOT v_exists THEN
            v_outcome := 'APPOINTMENT_NOT_FOUND';
        ELSIF w.expected_revision IS NOT NULL
            AND (NOT v_exists OR w.expected_revision NOT IN (0, stored.revision)) THEN
            v_outcome := 'ETAG_MISMATCH';
        ELSIF w.create_only AND v_exists THEN
            v_outcome := 'APPOINTMENT_EXISTS';
        ELSIF w.kind = 'CANCEL' THEN
            IF stored.state = 'CANCELLED' THEN
                v_outcome := 'UNCHANGED';
            END IF;
        ELSIF v_exists AND stored.updated_at_given
            AND (w.updated_at < stored.updated_at
                OR w.updated_at = stored.updated_at AND stored.state = 'CANCELLED') THEN
            v_outcome := 'STALE';
        ELSIF v_exists AND stored.state = 'ACTIVE'
            AND stored.resource_id = w.resource_id
            AND stored.start_time = w.start_time
            AND stored.end_time = w.end_time
            AND stored.title = w.title
            AND stored.attributes::text = w.attributes::text
            AND (w.created_at IS NULL OR w.created_at = stored.created_at)
            AND (w.updated_at IS NULL OR w.updated_at = stored.updated_at) THEN
            v_outcome := 'UNCHANGED';
        ELSE
            -- Active ranges of a resource never overlap, so of all that start before the
            -- new end only the last can reach into the new range.
            -- The row comparison leaves the planner one index that has the order; what it
            -- finds may be another resource's last.
            SELECT a.resource_id, a.end_time INTO neighbour
            FROM appointments a
            WHERE a.organization_id = p_organization_id
                AND (a.resource_id, a.start_time) < (w.resource_id, w.end_time)
                AND a.state = 'ACTIVE'
                AND a.appointment_id <> w.id
            ORDER BY a.resource_id DESC, a.start_time DESC
            LIMIT 1;
            IF neighbour.resource_id = w.resource_id AND neighbour.end_time > w.start_time THEN
                v_outcome := 'TIME_RANGE_CONFLICT';
                v_conflicts := overlapping_appointments(
                    p_organization_id, w.resource_id, w.id, w.start_time, w.end_time
                );
            END IF;
        END IF;

        IF v_outcome IS NULL THEN
            IF w.kind = 'CANCEL' THEN
                v_outcome := 'CANCELLED';
                stored.state := 'CANCELLED';
            ELSE
                v_outcome := CASE WHEN v_exists THEN 'UPDATED' ELSE 'CREATED' END;
                stored.organization_id := p_organization_id;
                stored.appointment_id := w.id;
                stored.resource_id := w.resource_id;
                stored.start_time := w.start_time;
                stored.end_time := w.end_time;
                stored.title := w.title;
                stored.attributes := w.attributes;
                stored.created_at := coalesce(w.created_at, stored.created_at, v_recorded_at);
                stored.updated_at := coalesce(w.updated_at, v_recorded_at);
                stored.updated_at_given := w.updated_at IS NOT NULL;
                stored.state := 'ACTIVE';
            END IF;
            stored.version := coalesce(stored.version, 0) + 1;
            -- A revision, and so an etag, is given to nothing but what is written.
            stored.revision := CASE WHEN w.validate_only THEN 0 ELSE v_revision + 1 END;

            IF NOT w.validate_only THEN
                v_revision := v_revision + 1;
                IF v_exists THEN
                    UPDATE appointments a
                    SET resource_id = stored.resource_id,
                        start_time = stored.start_time,
                        end_time = stored.end_time,
                        title = stored.title,
                        attributes = stored.attributes,
                        created_at = stored.created_at,
                        updated_at = stored.updated_at,
                        updated_at_given = stored.updated_at_given,
                        state = stored.state,
                        version = stored.version,
                        revision = stored.revision
                    WHERE a.organization_id = p_organization_id AND a.appointment_id = w.id;
                ELSE
                    INSERT INTO appointments (
                        organization_id, appointment_id, resource_id, start_time, end_time, title,
                        attributes, created_at, updated_at, updated_at_given, state, version, revision
                    ) VALUES (
                        p_organization_id, w.id, stored.resource_id, stored.start_time, stored.end_time,
                        stored.title, stored.attributes, stored.created_at, stored.updated_at,
                        stored.updated_at_given, stored.state, stored.version, stored.revision
                    );
                END IF;
                INSERT INTO appointment_history (
                    organization_id, revision, change, recorded_at, actor,
                    idempotency_key, idempotency_digest,
                    appointment_id, resource_id, start_time, end_time, title, attributes,
                    created_at, updated_at, state, version
                ) VALUES (
                    p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                    w.idempotency_key,
                    CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                    stored.appointment_id, stored.resource_id, stored.start_time, stored.end_time,
                    stored.title, stored.attributes,
                    stored.created_at, stored.updated_at, stored.state, stored.version
                );
            END IF;
        END IF;

        RETURN QUERY SELECT
            v_outcome, v_revision, v_lock_wait,
            stored.appointment_id, stored.resource_id, stored.start_time, stored.end_time,
            stored.title, stored.attributes, stored.created_at, stored.updated_at,
            stored.state, stored.version, stored.revision, v_conflicts;
    END LOOP;

    IF v_revision > v_first_revision THEN
        INSERT INTO organizations (organization_id, revision, recorded_at)
        VALUES (p_organization_id, v_revision, v_recorded_at)
        ON CONFLICT (organization_id) DO UPDATE
        SET revision = excluded.revision, recorded_at = excluded.recorded_at;
    END IF;
END
$$;

ALTER TABLE appointments DROP COLUMN cancel_updated_at;
DROP TABLE unchanged_writes;
