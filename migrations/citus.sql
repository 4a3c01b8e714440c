-- What is different in a database that is distributed by organization (docs/scaling.md). `migrate` runs
-- this file at its end where the extension citus is (service/postgres/distribution.py). Nothing in it
-- needs the extension, so that tests run it on PostgreSQL alone.
--
-- A function that replaces or follows one of functions.sql, which Citus refuses or which would be slow
-- there, names the digest of the other one's text: a test fails when that changes, until somebody has
-- looked at this one too and has replaced the digest (tests/citus/test_variants.py says it).

-- Rights on columns do not reach the nodes, and nor do the views of the schema `own`: a role needs the
-- tables. So PostgreSQL does not keep the organizations apart here, and secrets are kept by
-- SECRETS_KEYS alone.
GRANT SELECT ON
organizations, appointments, appointment_history, operations, queued_operations, webhooks,
webhook_deliveries
TO appointments_caller;

-- Replaces first_queued_sequence, digest 08fcb714050b0cb1: the queue of an organization is
-- on its node, and the start of the queue is known by transactions of one server only.
CREATE OR REPLACE FUNCTION first_queued_sequence()
RETURNS bigint
LANGUAGE sql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
    SELECT 0::bigint
$$;

-- Replaces advance_operation_queue, digest 146721cd0f05ab2d: see above.
CREATE OR REPLACE FUNCTION advance_operation_queue()
RETURNS bigint
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN 0;
END
$$;

-- Replaces count_queued_operations, digest da3135a6d64a4353: each shard counts its own,
-- instead of sending its rows to be counted.
CREATE OR REPLACE FUNCTION count_queued_operations(p_most integer)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
DECLARE
    v_count bigint;
BEGIN
    SELECT count(*) INTO v_count FROM queued_operations;
    RETURN least(v_count, p_most);
END
$$;

-- Follows apply_queued_operations, digest 3b6d8027d088c412: for one organization, so that
-- the call runs on its node. It applies up to p_most operations; with p_only_one, the first one only.
--
-- status: DONE, MORE or LOST, as there. It waits for the organization's lock, so it is never BUSY.
CREATE OR REPLACE FUNCTION apply_queued(
    p_organization_id text,
    p_fence bigint,
    p_only_one boolean,
    p_most integer,
    p_lease interval
)
RETURNS TABLE (status text, applied integer, delay double precision, traces text [])
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    v_sequences bigint[];
    v_operations json;
    v_oldest timestamptz;
    v_leased_until timestamptz := '-infinity';
BEGIN
    PERFORM check_organization(p_organization_id);
    applied := 0;
    PERFORM 1 FROM operation_leases l
    WHERE l.organization_id = p_organization_id AND l.fence = p_fence
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        status := 'LOST';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Before the queue is read, since a redaction changes what is queued.
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));

    SELECT
        array_agg(o.sequence),
        json_agg(json_build_object(
            'operation_id', o.operation_id, 'accepted_at', o.accepted_at, 'write', o.write
        )),
        min(o.accepted_at),
        array_agg(o.write ->> 'trace') FILTER (WHERE o.write ->> 'trace' IS NOT NULL)
    INTO v_sequences, v_operations, v_oldest, traces
    FROM (
        SELECT q.sequence, q.operation_id, q.accepted_at, q.write
        FROM queued_operations q
        WHERE q.organization_id = p_organization_id
        ORDER BY q.sequence
        LIMIT CASE WHEN p_only_one THEN 1 ELSE p_most END
    ) AS o;
    IF v_sequences IS NOT NULL THEN
        PERFORM apply_operations(p_organization_id, v_operations, true);
        DELETE FROM queued_operations q
        WHERE q.organization_id = p_organization_id AND q.sequence = ANY (v_sequences);
        applied := cardinality(v_sequences);
        delay := extract(epoch FROM clock_timestamp() - v_oldest);
    END IF;
    PERFORM 1 FROM queued_operations q
    WHERE q.organization_id = p_organization_id
    ORDER BY q.sequence
    LIMIT 1;
    status := 'DONE';
    IF FOUND THEN
        status := 'MORE';
        v_leased_until := clock_timestamp() + p_lease;
    END IF;
    UPDATE operation_leases l
    SET attempts = 0, leased_until = v_leased_until
    WHERE l.organization_id = p_organization_id;
    RETURN NEXT;
END
$$;

REVOKE ALL ON FUNCTION apply_queued FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_queued TO appointments_service;

-- Replaces lease_operations, digest c7b4ba0da7cd2679: rows of several shards cannot be locked.
-- One statement looks for candidates on all shards; then each is leased by a statement of its own, which
-- does nothing if another worker was faster.
CREATE OR REPLACE FUNCTION lease_operations(p_after text, p_most integer, p_lease interval)
RETURNS TABLE (organization_id text, fence bigint, attempts integer)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    c_candidates constant integer := 4 * p_most;
    v_left integer := p_most;
    v_now timestamptz := clock_timestamp();
    candidate record;
BEGIN
    FOR candidate IN
        SELECT queued.organization_id
        FROM (
            SELECT q.organization_id
            FROM queued_operations q
            LEFT JOIN operation_leases l ON l.organization_id = q.organization_id
            WHERE l.organization_id IS NULL OR l.leased_until < v_now
            GROUP BY q.organization_id
        ) AS queued
        ORDER BY queued.organization_id <= p_after, queued.organization_id
        LIMIT c_candidates
    LOOP
        EXIT WHEN v_left = 0;
        v_now := clock_timestamp();
        RETURN QUERY
        INSERT INTO operation_leases AS l (organization_id, fence, leased_until, attempts)
        VALUES (candidate.organization_id, 1, v_now + p_lease, 0)
        ON CONFLICT (organization_id) DO UPDATE
        SET fence = l.fence + 1, leased_until = excluded.leased_until
        WHERE l.leased_until < v_now
        RETURNING l.organization_id, l.fence, l.attempts;
        IF FOUND THEN
            v_left := v_left - 1;
        END IF;
    END LOOP;
END
$$;

-- Replaces claim_webhooks, digest 710306886cd0f1cd: as lease_operations above.
CREATE OR REPLACE FUNCTION claim_webhooks(
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
DECLARE
    v_now constant timestamptz := now();
    v_until constant timestamptz := now() + make_interval(secs => p_lease);
    v_failing boolean;
    v_slots integer := p_slots;
    due record;
BEGIN
    PERFORM require_no_organization();
    FOREACH v_failing IN ARRAY '{false,true}'::boolean [] LOOP
        FOR due IN
            SELECT w.organization_id, w.webhook_id
            FROM webhooks w
            JOIN organizations o ON o.organization_id = w.organization_id
            WHERE NOT w.disabled
                AND (w.attempts > 0) = v_failing
                AND w.next_attempt_at <= v_now
                AND w.leased_until <= v_now
                AND w.cursor_revision < o.revision
            ORDER BY w.next_attempt_at
            LIMIT v_slots
        LOOP
            UPDATE webhooks w
            SET leased_until = v_until, fence = w.fence + 1
            WHERE w.organization_id = due.organization_id
                AND w.webhook_id = due.webhook_id
                AND NOT w.disabled
                AND w.next_attempt_at <= v_now
                AND w.leased_until <= v_now
            RETURNING
                w.organization_id, w.webhook_id, w.fence, w.url, w.changes, w.resource_id,
                w.header_names, w.disabled, w.cursor_revision, w.attempts, w.updated_at
            INTO
                organization_id, webhook_id, fence, url, changes, resource_id,
                header_names, disabled, cursor_revision, attempts, updated_at;
            IF FOUND THEN
                SELECT s.live_secrets, s.header_values INTO live_secrets, header_values
                FROM webhook_secrets(due.organization_id, due.webhook_id) AS s;
                RETURN NEXT;
            END IF;
        END LOOP;
        v_slots := p_failing_slots;
    END LOOP;
END
$$;

-- Replaces finished_operations, digest 081e9ceadfd8710b: only the shards of these
-- organizations are asked. It may return a pair that nobody waits for.
CREATE OR REPLACE FUNCTION finished_operations(p_organization_ids text [], p_operation_ids uuid [])
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
    FROM operations o
    WHERE o.organization_id = ANY (p_organization_ids) AND o.operation_id = ANY (p_operation_ids);
END
$$;

-- Remove all rows of an organization, in one transaction on its node, and note that (`python -m service
-- purge`). Returns how many there were of each table. The tables' owner calls it. Programs take its
-- existence as the sign that the database is distributed.
CREATE OR REPLACE FUNCTION purge_organization(p_organization_id text)
RETURNS TABLE (removed_from text, removed bigint)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    FOREACH removed_from IN ARRAY ARRAY[
        'queued_operations', 'webhook_deliveries', 'operations', 'unchanged_writes', 'erased_keys',
        'appointments', 'appointment_history', 'webhooks', 'operation_leases', 'event_cursors',
        'organizations'
    ] LOOP
        EXECUTE format('DELETE FROM %I WHERE organization_id = $1', removed_from)
        USING p_organization_id;
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN NEXT;
    END LOOP;
    INSERT INTO purged_organizations (organization_id, purged_at)
    VALUES (p_organization_id, clock_timestamp())
    ON CONFLICT (organization_id) DO UPDATE SET purged_at = excluded.purged_at;
END
$$;

REVOKE ALL ON FUNCTION purge_organization FROM PUBLIC;

-- A plan has to know the organization to find its node, so none is generic. On a node, functions use the
-- tables, as there are no views.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
            AND 'plan_cache_mode=force_generic_plan' = ANY (p.proconfig)
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = auto', v_function);
    END LOOP;
    FOR v_function IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
            AND EXISTS (
                SELECT 1 FROM unnest(p.proconfig) AS setting WHERE setting LIKE 'search_path=own,%'
            )
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = public, pg_temp', v_function);
    END LOOP;
END
$$;
