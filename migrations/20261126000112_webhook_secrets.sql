-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

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
    SELECT DISTINCT
        CASE WHEN stored.value LIKE 'encrypted§%' THEN split_part(stored.value, '§', 2) ELSE '' END
    FROM webhooks w
    CROSS JOIN LATERAL unnest(w.secret || w.old_secrets || w.header_values) AS stored (value);
END
$$;

REVOKE ALL ON FUNCTION webhook_key_ids FROM PUBLIC;
GRANT EXECUTE ON FUNCTION webhook_key_ids TO appointments_service, appointments_caller;

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
        AND EXISTS (
            SELECT FROM unnest(w.secret || w.old_secrets || w.header_values) AS stored (value)
            WHERE NOT starts_with(stored.value, 'encrypted§' || p_key_id || '§')
        )
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

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

DROP FUNCTION webhooks_without_key(text,text,text,integer);

DROP FUNCTION webhook_key_ids();

DROP FUNCTION reencrypt_webhook(text,text,text[],text[],text[],text[]);
