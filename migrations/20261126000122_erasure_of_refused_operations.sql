-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- Store that an operation cannot be applied: as FAILED with p_failure, or, if that is NULL, as
-- TIME_RANGE_CONFLICT with a row that apply_writes does not see (of hand-written SQL in an open
-- transaction).
--
-- Takes the organization's lock: a redaction or a purge in progress would not see the stored write.
CREATE OR REPLACE FUNCTION refuse_operation(
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

-- Finish the first queued operation of a leased organization as FAILED, because no call for it
-- got a response. Return its id, or NULL if the lease is lost or nothing is queued.
CREATE OR REPLACE FUNCTION give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
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

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

CREATE OR REPLACE FUNCTION public.give_up_operation(p_organization_id text, p_fence bigint, p_failure text)
 RETURNS uuid
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
 SET enable_sort TO 'off'
AS $function$
DECLARE
    c_start constant bigint := first_queued_sequence();
    first record;
BEGIN
    PERFORM check_organization(p_organization_id);
    UPDATE operation_leases l
    SET attempts = 0
    WHERE l.organization_id = p_organization_id AND l.fence = p_fence;
    IF FOUND THEN
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
$function$;

REVOKE ALL ON FUNCTION give_up_operation(text,bigint,text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION give_up_operation(text,bigint,text) TO appointments_service;

CREATE OR REPLACE FUNCTION public.refuse_operation(p_organization_id text, p_operation_id uuid, p_accepted_at timestamp with time zone, p_write json, p_failure text)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'own', 'public', 'pg_temp'
AS $function$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_revision bigint;
    v_conflicts json;
    v_failure text := p_failure;
    v_write json;
BEGIN
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
$function$;

REVOKE ALL ON FUNCTION refuse_operation(text,uuid,timestamp with time zone,json,text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_operation(text,uuid,timestamp with time zone,json,text) TO appointments_service;
