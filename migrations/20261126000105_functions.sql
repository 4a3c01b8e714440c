-- migrate:up

-- migrations/functions.sql as of this migration.

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
GRANT EXECUTE ON FUNCTION organization_lock_key TO appointments_service;

-- Return the active appointments of a resource that overlap a range, except p_except_id, as a
-- JSON array of at most 21, ordered by start. Active ranges of a resource do not overlap, so of
-- the appointments that start before the range only the last one can overlap it.
CREATE FUNCTION overlapping_appointments(
    p_organization_id text,
    p_resource_id text,
    p_except_id text,
    p_start_time timestamptz,
    p_end_time timestamptz
)
RETURNS json
LANGUAGE sql
STABLE
SET search_path = public, pg_temp
AS $$
    SELECT json_agg(
        json_build_object(
            'id', found.appointment_id,
            'start', found.start_time,
            'end', found.end_time,
            'version', found.version
        ) ORDER BY found.start_time
    )
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
    ) AS found
$$;

REVOKE ALL ON FUNCTION overlapping_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION overlapping_appointments TO appointments_service;

-- Apply a batch of writes of one organization, in order, and return one row for each write.
-- Each write sees those before it. There is no other way to change an appointment.
--
-- The function first takes the organization's advisory lock, which is held to the end of the
-- transaction. Every later statement has a new snapshot, so it sees everything that earlier
-- holders committed. This is true in READ COMMITTED only: other isolation levels are refused.
--
-- writes: a JSON array of objects with the columns of the record below. The caller has
-- validated the fields. An expected_revision of 0 means any stored revision. The updated_at
-- of a cancel is stored as cancel_updated_at.
--
-- outcome: the effect of the write (CREATED, UPDATED, UNCHANGED, STALE, CANCELLED), or the
-- reason of its refusal (APPOINTMENT_NOT_FOUND, APPOINTMENT_EXISTS, ETAG_MISMATCH,
-- IDEMPOTENCY_KEY_REUSED, TIME_RANGE_CONFLICT). conflicts: for TIME_RANGE_CONFLICT, a JSON array
-- of at most 21. appointment: the stored row after a write that was not refused. A write that
-- repeats an earlier one with the same idempotency key gets the earlier outcome and
-- appointment; columns that the history does not have are NULL then.
--
-- If the function does not see an overlap (with hand-written SQL in an open transaction), the
-- whole call fails with the exclusion constraint's error.
CREATE FUNCTION apply_writes(p_organization_id text, p_writes json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
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
    -- The latest updated_at that callers sent for the stored appointment, including that of a
    -- cancel; NULL if they sent none. A write with an older one is stale.
    v_guard timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
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
                    -- Copies columns by name. It is slow, but such retries are rare.
                    stored := json_populate_record(NULL::appointments, row_to_json(keyed));
                    RETURN QUERY SELECT keyed.change, v_revision, v_lock_wait, NULL::json, stored;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            END IF;
        END IF;

        -- The order makes the planner use the primary key. With an equality, another index can
        -- have the same estimated cost.
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
                -- Nothing visible changes, but updates older than this cancel are stale now.
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
            -- Active ranges of a resource never overlap, so of those that start before the new
            -- end only the last one can overlap the new range. With the row comparison only one
            -- index has this order. The row found may belong to another resource.
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
            -- A validated write that is not stored has no revision, and therefore no etag.
            stored.revision := CASE WHEN w.validate_only THEN 0 ELSE v_revision + 1 END;

            v_changed := NOT w.validate_only;
            v_store := v_changed;
        END IF;

        IF v_store THEN
            -- ON CONFLICT always uses the primary key.
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

        RETURN QUERY SELECT v_outcome, v_revision, v_lock_wait, v_conflicts, stored;
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
GRANT EXECUTE ON FUNCTION apply_writes TO appointments_service;

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
GRANT EXECUTE ON FUNCTION apply_batches TO appointments_service;

-- Return the latest revision of an organization that was recorded at or before a time; 0 if
-- there is none. recorded_at never decreases as the revision grows, so a binary search on the
-- primary key finds it, without another index that every write would have to maintain.
CREATE FUNCTION revision_at(p_organization_id text, p_time timestamptz)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SET search_path = public, pg_temp
AS $$
DECLARE
    low bigint := 0;
    high bigint;
    middle bigint;
BEGIN
    SELECT o.revision INTO high
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    high := coalesce(high, 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        -- The order makes the planner use the primary key, as in apply_writes.
        IF (
            SELECT h.recorded_at <= p_time
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.revision BETWEEN middle AND middle
            ORDER BY h.revision
        ) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END
$$;

REVOKE ALL ON FUNCTION revision_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revision_at TO appointments_service;

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

-- Return the number of queued operations, at most p_most.
CREATE FUNCTION count_queued_operations(p_most integer)
RETURNS bigint
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
    SELECT count(*)
    FROM (
        SELECT FROM queued_operations q
        WHERE q.sequence + 0 >= first_queued_sequence()
        ORDER BY q.sequence + 0
        LIMIT p_most
    ) AS counted
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

-- Store that an operation cannot be applied: as FAILED with p_failure, or, if that is NULL, as
-- TIME_RANGE_CONFLICT with a row that apply_writes does not see (of hand-written SQL in an open
-- transaction).
CREATE FUNCTION refuse_operation(
    p_organization_id text,
    p_operation_id uuid,
    p_accepted_at timestamptz,
    p_write json,
    p_failure text
)
RETURNS void
LANGUAGE sql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
    INSERT INTO operations (
        organization_id, operation_id, accepted_at, finished_at, appointment_id,
        outcome, organization_revision, conflicts, failure, write
    )
    SELECT
        p_organization_id, p_operation_id, p_accepted_at, clock_timestamp(),
        coalesce(p_write ->> 'id', ''),
        CASE WHEN p_failure IS NULL THEN 'TIME_RANGE_CONFLICT' ELSE 'FAILED' END,
        coalesce(
            (SELECT o.revision FROM organizations o WHERE o.organization_id = p_organization_id), 0
        ),
        CASE WHEN p_failure IS NULL THEN overlapping_appointments(
            p_organization_id, p_write ->> 'resource_id', p_write ->> 'id',
            (p_write ->> 'start_time')::timestamptz, (p_write ->> 'end_time')::timestamptz
        ) END,
        p_failure,
        CASE WHEN p_failure IS NOT NULL THEN p_write END
    ON CONFLICT DO NOTHING
$$;

REVOKE ALL ON FUNCTION refuse_operation FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_operation TO appointments_service;

-- Apply operations of one organization by apply_writes, in order, and store their results in
-- the same transaction. Finished operations are skipped, so operations may be passed again.
--
-- operations: a JSON array of {"operation_id", "accepted_at", "write"}.
--
-- If an operation causes an error, it is finished with that error and the others are applied.
-- Errors that no operation causes (locks, resources, missing privileges, a shutdown of the
-- server) fail the whole call, and nothing is written.
CREATE FUNCTION apply_operations(p_organization_id text, p_operations json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    v_ids uuid[];
    v_accepted timestamptz[];
    v_writes json[];
    v_appointment_ids text[];
    v_constraint text;
    n integer;
BEGIN
    -- Before the query for finished operations: another session may be applying the same ones.
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));

    SELECT
        array_agg(o.operation_id ORDER BY o.number),
        array_agg(o.accepted_at ORDER BY o.number),
        array_agg(o.write ORDER BY o.number),
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
    WHERE NOT EXISTS (
        SELECT FROM operations done
        WHERE done.organization_id = p_organization_id AND done.operation_id = o.operation_id
    );
    IF v_ids IS NULL THEN
        RETURN;
    END IF;

    BEGIN
        INSERT INTO operations (
            organization_id, operation_id, accepted_at, finished_at, appointment_id,
            outcome, organization_revision, revision, conflicts
        )
        SELECT
            p_organization_id, v_ids[r.ordinality], v_accepted[r.ordinality], clock_timestamp(),
            v_appointment_ids[r.ordinality],
            r.outcome, r.organization_revision,
            CASE WHEN r.outcome IN ('CREATED', 'UPDATED', 'CANCELLED', 'UNCHANGED', 'STALE')
                THEN (r.appointment).revision END,
            r.conflicts
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
                )));
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
-- operations was accepted.
--
-- A call for several leases waits at most 50 ms for any other lock. It then fails, and nothing
-- is written.
CREATE FUNCTION apply_queued_operations(p_leases json, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, status text, applied integer, delay double precision)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_leases constant integer := json_array_length(p_leases);
    -- Rows are never updated, so their ctids stay valid.
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
        IF v_leases > 1 AND NOT pg_try_advisory_xact_lock(
            organization_lock_key(lease.organization_id)
        ) THEN
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
            PERFORM apply_operations(lease.organization_id, v_operations);
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
    first record;
BEGIN
    UPDATE operation_leases l
    SET attempts = 0
    WHERE l.organization_id = p_organization_id AND l.fence = p_fence;
    IF FOUND THEN
        DELETE FROM queued_operations q
        WHERE q.ctid = (
            SELECT f.ctid FROM queued_operations f
            WHERE f.organization_id = p_organization_id
                AND f.sequence >= first_queued_sequence()
            ORDER BY f.sequence
            LIMIT 1
        )
        RETURNING q.* INTO first;
        IF FOUND THEN
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
    p_most integer
)
RETURNS TABLE (outcome text, organization_revision bigint)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    v_revision bigint;
BEGIN
    -- With another seed than the lock of the writes.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236006));

    SELECT coalesce(max(o.revision), 0) INTO v_revision
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    IF p_after_revision > v_revision THEN
        RETURN QUERY SELECT 'BEYOND', v_revision;
    ELSIF p_most <= (SELECT count(*) FROM webhooks w WHERE w.organization_id = p_organization_id) THEN
        RETURN QUERY SELECT 'LIMIT_REACHED', v_revision;
    ELSE
        INSERT INTO webhooks (
            organization_id, webhook_id, url, description, changes, header_names, header_values,
            secret, disabled, created_at, updated_at, cursor_revision, next_attempt_at
        ) VALUES (
            p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_header_names,
            p_header_values, p_secret, p_disabled, now(), now(),
            coalesce(p_after_revision, v_revision), now()
        );
        RETURN QUERY SELECT 'CREATED', v_revision;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION create_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook TO appointments_service;

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
    p_header_values text []
)
RETURNS SETOF integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    v_values text [];
    v_missing integer;
BEGIN
    SELECT ARRAY(
        SELECT coalesce(given.value, stored.value)
        FROM unnest(p_header_names, p_header_values)
            WITH ORDINALITY AS given (name, value, place)
        LEFT JOIN unnest(w.header_names, w.header_values) AS stored (name, value)
            ON lower(stored.name) = lower(given.name)
        ORDER BY given.place
    )
    INTO v_values
    FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    v_missing := array_position(v_values, NULL);
    IF v_missing IS NULL THEN
        UPDATE webhooks w
        SET url = p_url,
            description = p_description,
            changes = p_changes,
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
    RETURN NEXT v_missing;
END
$$;

REVOKE ALL ON FUNCTION replace_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replace_webhook TO appointments_service;

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
SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE webhooks w
    SET secret = p_secret,
        old_secrets = (array_prepend(w.secret, w.old_secrets))[1:4],
        old_secrets_until = (array_prepend(
            now() + make_interval(secs => p_overlap), w.old_secrets_until
        ))[1:4],
        updated_at = now()
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    RETURN found;
END
$$;

REVOKE ALL ON FUNCTION rotate_webhook_secret FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rotate_webhook_secret TO appointments_service;

-- Return the secrets that sign, and the values of the caller's own headers. The service's role
-- can read them only by this function, as it has no privilege on these columns. Volatile, so
-- that it sees the row as changed by the calling statement.
CREATE FUNCTION webhook_secrets(p_organization_id text, p_webhook_id text)
RETURNS TABLE (live_secrets text [], header_values text [])
LANGUAGE sql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
    SELECT
        array_prepend(w.secret, ARRAY(
            SELECT old.secret
            FROM unnest(w.old_secrets, w.old_secrets_until) AS old (secret, until)
            WHERE old.until > now()
        )),
        w.header_values
    FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id
$$;

REVOKE ALL ON FUNCTION webhook_secrets FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhook_secrets TO appointments_service;

-- Every call of a function fails if its owner has no privileges on the tables.
DO $$
DECLARE
    v_apart text;
BEGIN
    SELECT format(
        'the function %I belongs to %I, the table %I to %I: give them one owner first',
        f.proname, pg_get_userbyid(f.proowner), t.relname, pg_get_userbyid(t.relowner)
    )
    INTO v_apart
    FROM pg_proc f, pg_class t
    WHERE f.pronamespace = 'public'::regnamespace
        AND f.proname IN (
            'apply_writes', 'lease_operations', 'refuse_operation', 'apply_operations',
            'apply_queued_operations', 'give_up_operation', 'webhook_secrets', 'create_webhook',
            'replace_webhook', 'rotate_webhook_secret'
        )
        AND t.relnamespace = 'public'::regnamespace
        AND t.relname IN (
            'organizations', 'appointments', 'appointment_history', 'unchanged_writes',
            'queued_operations', 'operations', 'operation_leases', 'webhooks'
        )
        AND NOT pg_has_role(f.proowner, t.relowner, 'USAGE')
    ORDER BY f.proname, t.relname
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION '%', v_apart;
    END IF;
END
$$;

-- migrate:down

DROP TRIGGER queued_operations_numbered ON queued_operations;
DROP FUNCTION webhook_secrets;
DROP FUNCTION rotate_webhook_secret;
DROP FUNCTION replace_webhook;
DROP FUNCTION create_webhook;
DROP FUNCTION give_up_operation;
DROP FUNCTION apply_queued_operations;
DROP FUNCTION apply_operations;
DROP FUNCTION refuse_operation;
DROP FUNCTION lease_operations;
DROP FUNCTION count_queued_operations;
DROP FUNCTION advance_operation_queue;
DROP FUNCTION first_queued_sequence;
DROP FUNCTION number_transaction;
DROP FUNCTION revision_at;
DROP FUNCTION apply_batches;
DROP FUNCTION apply_writes;
DROP FUNCTION overlapping_appointments;
DROP FUNCTION organization_lock_key;
