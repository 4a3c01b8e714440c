-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

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
CREATE OR REPLACE FUNCTION apply_operations(
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

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

CREATE OR REPLACE FUNCTION public.apply_operations(p_organization_id text, p_operations json, p_is_marked boolean DEFAULT false)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'own', 'public', 'pg_temp'
AS $function$
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
    SELECT coalesce(array_agg(done.operation_id), '{}') INTO v_done
    FROM operations done
    WHERE done.organization_id = p_organization_id AND done.operation_id = ANY (v_ids);

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
$function$;

REVOKE ALL ON FUNCTION apply_operations(text,json,boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_operations(text,json,boolean) TO appointments_service;
