-- migrate:up

-- Writers queue up behind a lock that is waited for: better to fail, and be started again.
SET LOCAL lock_timeout = '2s';

-- Rows that were applied stay in the table and its indexes as long as anybody has a snapshot
-- from before, such as a backup or a long report, and vacuum cannot help. So that looking for
-- what is queued does not pass all of them, it begins at a sequence below which nothing is
-- queued and nothing ever will be.
CREATE TABLE operation_queue_start (
    the_only boolean NOT NULL DEFAULT true,
    first_sequence bigint NOT NULL,
    -- Whoever was given a sequence up to this one had a transaction before that one.
    settling_sequence bigint NOT NULL,
    settling_transaction xid8 NOT NULL,
    CONSTRAINT operation_queue_start_pkey PRIMARY KEY (the_only),
    CONSTRAINT operation_queue_start_one_row CHECK (the_only)
);
INSERT INTO operation_queue_start (first_sequence, settling_sequence, settling_transaction)
VALUES (0, 0, pg_current_xact_id());

-- For finding the oldest of all. An expression, so that no look into an organization is
-- planned along it.
-- The queue is short as a rule, so writing to it is not blocked for long.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX queued_operations_by_sequence ON queued_operations ((sequence + 0));

-- Before a row is given its sequence its transaction has a number: advance_operation_queue
-- relies on it.
CREATE FUNCTION number_transaction() RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END
$$;
CREATE TRIGGER queued_operations_numbered BEFORE INSERT ON queued_operations
FOR EACH STATEMENT EXECUTE FUNCTION number_transaction();

-- Where to begin to look: no operation with a lower sequence is queued, or is about to be by
-- a transaction that is still open.
CREATE FUNCTION first_queued_sequence() RETURNS bigint
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
    SELECT coalesce((SELECT s.first_sequence FROM operation_queue_start s), 0)
$$;

-- Move the beginning behind what is done, and return it. It moves at most once in a thousand
-- operations, since each move leaves a dead row too.
--
-- It is known of a sequence that everything up to it can be seen, or was rolled back, when all
-- transactions have ended that began before the sequence was read. So the beginning stays
-- while an older transaction that writes is open; one that only reads does not hold it.
CREATE FUNCTION advance_operation_queue() RETURNS bigint
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
    -- In this order: the last sequence is not lower than the beginning that is read.
    SELECT * INTO v_start FROM operation_queue_start;
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO v_last
    FROM queued_operations_sequence_seq s;
    v_first := coalesce(v_start.first_sequence, 0);
    -- The number of a transaction that has one already may be lower than that of somebody who
    -- was given a sequence.
    IF v_last BETWEEN v_first - 1 AND v_first + c_step
        OR v_start IS NULL
        OR pg_current_xact_id_if_assigned() IS NOT NULL
    THEN
        RETURN v_first;
    END IF;

    IF v_last < v_first THEN
        -- The sequence was set back.
        v_first := 0;
    ELSIF v_start.settling_transaction >= pg_snapshot_xmin(pg_current_snapshot()) THEN
        -- Not settled yet; unless the transaction is none of this server's, to which the
        -- database was copied by a dump.
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
    -- Otherwise somebody else moves it, or has done so.
    IF FOUND THEN
        UPDATE operation_queue_start
        SET first_sequence = v_first,
            settling_sequence = v_last,
            settling_transaction = pg_current_xact_id();
    END IF;
    RETURN v_first;
END
$$;

-- How many operations wait, counted up to p_most.
CREATE FUNCTION count_queued_operations(p_most integer) RETURNS bigint
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

-- The three that look for what is queued, as they were but for where they begin.

CREATE OR REPLACE FUNCTION lease_operations(p_after text, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, fence bigint, attempts integer)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
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

CREATE OR REPLACE FUNCTION apply_queued_operations(p_leases json, p_most integer, p_lease interval)
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
    -- Rows are never changed, so their places hold.
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
        -- The same key as in apply_writes.
        IF v_leases > 1 AND NOT pg_try_advisory_xact_lock(
            hashtextextended(lease.organization_id, 7236001)
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
            -- By the keys, an index of the organization's would look as cheap, and pass all.
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

CREATE OR REPLACE FUNCTION give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
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

REVOKE ALL ON FUNCTION
number_transaction, first_queued_sequence, advance_operation_queue, count_queued_operations
FROM public;
GRANT EXECUTE ON FUNCTION count_queued_operations TO appointments_service;

-- migrate:down

CREATE OR REPLACE FUNCTION lease_operations(p_after text, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, fence bigint, attempts integer)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
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

CREATE OR REPLACE FUNCTION apply_queued_operations(p_leases json, p_most integer, p_lease interval)
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

CREATE OR REPLACE FUNCTION give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
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

DROP FUNCTION count_queued_operations;
DROP FUNCTION advance_operation_queue;
DROP FUNCTION first_queued_sequence;
DROP TRIGGER queued_operations_numbered ON queued_operations;
DROP FUNCTION number_transaction;
DROP INDEX queued_operations_by_sequence;
DROP TABLE operation_queue_start;
