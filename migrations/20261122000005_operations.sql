-- migrate:up

-- Operations that were accepted and are not applied yet. Those of one organization are
-- applied in the order of their sequence. It is given when an operation is accepted, so one
-- that was answered before another was sent has the lower one, and is seen no later.
CREATE TABLE queued_operations (
    organization_id text COLLATE "C" NOT NULL,
    sequence bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    -- An element of apply_writes' writes.
    write json NOT NULL,
    CONSTRAINT queued_operations_pkey PRIMARY KEY (organization_id, sequence),
    CONSTRAINT queued_operations_by_id UNIQUE (organization_id, operation_id)
)
-- Rows come and go; what is dead is in the way of finding the next.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Operations that are done, kept for a time. Written in the transaction that applied them.
CREATE TABLE operations (
    organization_id text COLLATE "C" NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    appointment_id text COLLATE "C" NOT NULL,
    -- As apply_writes gives it, or FAILED.
    outcome text NOT NULL,
    organization_revision bigint NOT NULL,
    -- Which entry of the history the appointment was after it; NULL if it was refused.
    revision bigint,
    conflicts json,
    -- Of what FAILED: the database's error, and what was to be written.
    failure text,
    write json,
    CONSTRAINT operations_pkey PRIMARY KEY (organization_id, operation_id)
);

-- For the purge.
CREATE INDEX operations_by_end ON operations (finished_at);

-- For finding those that were refused, or FAILED, among all the others.
CREATE INDEX operations_refused ON operations (organization_id, operation_id)
WHERE revision IS NULL;

-- Who may apply an organization's queued operations: the holder of the latest fence.
CREATE TABLE operation_leases (
    organization_id text COLLATE "C" NOT NULL,
    fence bigint NOT NULL,
    leased_until timestamptz NOT NULL,
    -- Calls that ended without an answer since operations were last applied. From the first
    -- on they go in a call of their own, one at a time: others are not to suffer from them.
    attempts integer NOT NULL,
    CONSTRAINT operation_leases_pkey PRIMARY KEY (organization_id)
);

-- Lease up to p_most organizations that have queued operations, beginning behind p_after
-- in the order of their ids and going round.
CREATE FUNCTION lease_operations(p_after text, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, fence bigint, attempts integer)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    -- In the order of the column, whatever that of the database is.
    v_next text COLLATE "C" := p_after;
    v_left integer := p_most;
    v_round boolean := false;
    v_leased_until timestamptz;
BEGIN
    WHILE v_left > 0 LOOP
        SELECT q.organization_id INTO v_next
        FROM queued_operations q
        WHERE q.organization_id > v_next
        ORDER BY q.organization_id
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
            -- Two that insert rows of several organizations would wait for each other.
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

-- Store that an operation cannot be applied: because the range is taken by a row that
-- apply_writes does not see (hand-written SQL in an open transaction), or FAILED.
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

-- Apply operations of one organization by apply_writes, in order, and store their results,
-- in one transaction. Those that are done already are passed over, so it does no harm to
-- bring them again.
--
-- operations: a JSON array of {"operation_id", "accepted_at", "write"}.
--
-- An operation that makes the database refuse the call as a whole is ended by itself, with
-- the error; the others are applied. What has other causes than the operation (locks,
-- resources, missing privileges, a server that stops) ends the call: nothing was written then.
CREATE FUNCTION apply_operations(p_organization_id text, p_operations json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
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
    -- The same lock as in apply_writes: what others apply is done before it is looked for.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236001));

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
            p_organization_id, v_ids[r.number], v_accepted[r.number], clock_timestamp(),
            v_appointment_ids[r.number],
            r.outcome, r.organization_revision,
            CASE WHEN r.outcome IN ('CREATED', 'UPDATED', 'CANCELLED', 'UNCHANGED', 'STALE')
                THEN r.revision END,
            r.conflicts
        FROM apply_writes(p_organization_id, array_to_json(v_writes)) WITH ORDINALITY AS r (
            outcome, organization_revision, lock_wait, appointment_id, resource_id, start_time,
            end_time, title, attributes, created_at, updated_at, state, version, revision,
            conflicts, number
        );
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

-- Apply queued operations of leased organizations, up to p_most of them in all.
--
-- leases: a JSON array of {"organization_id", "fence", "only_one"}; in an organization with
-- only_one the first operation goes by itself.
--
-- status: DONE (nothing is queued any more, the lease is given back), MORE (the lease goes
-- on), BUSY (another session has the organization's lock; never of a single lease, which
-- waits for it), LOST (the lease is another's now). delay: seconds since the oldest of them
-- was accepted.
--
-- Several leases wait for no lock that another session has, of whatever kind, longer than
-- an instant: the call ends, and nothing was written.
CREATE FUNCTION apply_queued_operations(p_leases json, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, status text, applied integer, delay double precision)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_leases constant integer := json_array_length(p_leases);
    v_sequences bigint[];
    v_operations json;
    v_oldest timestamptz;
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
        -- The same key as in apply_writes.
        IF v_leases > 1 AND NOT pg_try_advisory_xact_lock(
            hashtextextended(lease.organization_id, 7236001)
        ) THEN
            status := 'BUSY';
            RETURN NEXT;
            CONTINUE;
        END IF;

        SELECT
            array_agg(o.sequence),
            json_agg(json_build_object(
                'operation_id', o.operation_id, 'accepted_at', o.accepted_at, 'write', o.write
            )),
            min(o.accepted_at)
        INTO v_sequences, v_operations, v_oldest
        FROM (
            SELECT q.sequence, q.operation_id, q.accepted_at, q.write
            FROM queued_operations q
            WHERE q.organization_id = lease.organization_id
            ORDER BY q.sequence
            LIMIT CASE WHEN lease.only_one THEN 1 ELSE greatest(p_most / v_leases, 1) END
        ) AS o;
        IF v_sequences IS NOT NULL THEN
            PERFORM apply_operations(lease.organization_id, v_operations);
            DELETE FROM queued_operations q
            WHERE q.organization_id = lease.organization_id AND q.sequence = ANY (v_sequences);
            applied := cardinality(v_sequences);
            delay := extract(epoch FROM clock_timestamp() - v_oldest);
        END IF;
        status := CASE WHEN EXISTS (
            SELECT FROM queued_operations q WHERE q.organization_id = lease.organization_id
        ) THEN 'MORE' ELSE 'DONE' END;
        UPDATE operation_leases l
        SET attempts = 0,
            leased_until = CASE WHEN status = 'MORE' THEN clock_timestamp() + p_lease
                ELSE '-infinity' END
        WHERE l.organization_id = lease.organization_id;
        RETURN NEXT;
    END LOOP;
END
$$;

-- End the first queued operation of a leased organization as FAILED, since every call for
-- it ended without an answer, and return its id.
CREATE FUNCTION give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
RETURNS uuid
LANGUAGE plpgsql
VOLATILE
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
        WHERE q.organization_id = p_organization_id AND q.sequence = (
            SELECT f.sequence FROM queued_operations f
            WHERE f.organization_id = p_organization_id
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

GRANT SELECT, INSERT, UPDATE, DELETE ON queued_operations, operation_leases
TO appointments_service;
GRANT SELECT, INSERT, DELETE ON operations TO appointments_service;
REVOKE ALL ON FUNCTION
lease_operations, refuse_operation, apply_operations, apply_queued_operations, give_up_operation
FROM public;
GRANT EXECUTE ON FUNCTION
lease_operations, refuse_operation, apply_operations, apply_queued_operations, give_up_operation
TO appointments_service;

-- migrate:down

DROP FUNCTION give_up_operation;
DROP FUNCTION apply_queued_operations;
DROP FUNCTION apply_operations;
DROP FUNCTION refuse_operation;
DROP FUNCTION lease_operations;
DROP TABLE operation_leases;
DROP TABLE operations;
DROP TABLE queued_operations;
