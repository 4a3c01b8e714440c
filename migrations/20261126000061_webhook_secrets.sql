-- migrate:up

-- What is to sign, and the values of the callers' own headers. The service's role reads them
-- by this function alone, of the webhook that it is about to send to; a look at the table
-- shows none. Volatile, so that it sees the row as the statement that calls it has left it.
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

ALTER FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text, bigint, integer
) SECURITY DEFINER;
ALTER FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text [], text [], text, bigint, integer
) SECURITY DEFINER;
ALTER FUNCTION replace_webhook SECURITY DEFINER;
ALTER FUNCTION rotate_webhook_secret SECURITY DEFINER;

-- A worker that still runs, and reads secrets from the table, sends no webhook from now on;
-- the one that replaces it goes on where it was.
REVOKE ALL ON webhooks FROM appointments_service;
GRANT
SELECT (
    organization_id, webhook_id, url, description, changes, header_names, disabled,
    disabled_reason, created_at, updated_at, cursor_revision, attempts, failing_since,
    next_attempt_at, leased_until, fence
),
UPDATE (
    disabled, disabled_reason, updated_at, cursor_revision, attempts, failing_since,
    next_attempt_at, leased_until, fence
),
DELETE
ON webhooks TO appointments_service;

-- A function whose owner may not do what it does: nothing would work that calls it.
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

REVOKE ALL ON webhooks FROM appointments_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks TO appointments_service;
ALTER FUNCTION rotate_webhook_secret SECURITY INVOKER;
ALTER FUNCTION replace_webhook SECURITY INVOKER;
ALTER FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text [], text [], text, bigint, integer
) SECURITY INVOKER;
ALTER FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text, bigint, integer
) SECURITY INVOKER;
DROP FUNCTION webhook_secrets;
