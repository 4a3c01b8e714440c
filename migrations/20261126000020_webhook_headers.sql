-- migrate:up

-- Writers queue up behind a lock that is waited for: better to fail, and be started again.
SET LOCAL lock_timeout = '2s';

-- Headers of the caller's own, sent with every change. What their values are, only the worker
-- that sends them reads, as it reads the secrets.
ALTER TABLE webhooks ADD COLUMN header_names text [] NOT NULL DEFAULT '{}';
ALTER TABLE webhooks ADD COLUMN header_values text [] NOT NULL DEFAULT '{}';
ALTER TABLE webhooks ADD CONSTRAINT webhooks_headers_have_values
CHECK (cardinality(header_names) = cardinality(header_values)) NOT VALID;  -- true of what is there

-- As the function of the same name before it, which code that still runs may call.
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
SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT created.*
    FROM create_webhook(
        p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_disabled, p_secret,
        p_after_revision, p_most
    ) AS created;
    UPDATE webhooks w
    SET header_names = p_header_names, header_values = p_header_values
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
END
$$;

-- Replaces what a caller sets of a webhook. A header whose value is NULL keeps the value that
-- is stored under its name, in whatever case it is written. What waits to be tried again is
-- tried at once: the URL may be another.
--
-- Returns no row if there is no such webhook; else the number of the first header, from 1,
-- that has no value to keep, whereupon nothing is replaced, or NULL.
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

-- Gives a webhook another secret; the one before signs on for a while (seconds). Old secrets
-- beyond the fourth end at once: each makes every request longer. Tells whether there is one.
CREATE FUNCTION rotate_webhook_secret(
    p_organization_id text, p_webhook_id text, p_secret text, p_overlap double precision
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
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

REVOKE ALL ON FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text [], text [], text, bigint, integer
) FROM PUBLIC;
REVOKE ALL ON FUNCTION replace_webhook FROM PUBLIC;
REVOKE ALL ON FUNCTION rotate_webhook_secret FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text [], text [], text, bigint, integer
) TO appointments_service;
GRANT EXECUTE ON FUNCTION replace_webhook TO appointments_service;
GRANT EXECUTE ON FUNCTION rotate_webhook_secret TO appointments_service;

-- migrate:down

DROP FUNCTION rotate_webhook_secret;
DROP FUNCTION replace_webhook;
DROP FUNCTION create_webhook(
    text, text, text, text, text [], boolean, text [], text [], text, bigint, integer
);
ALTER TABLE webhooks DROP COLUMN header_values;
ALTER TABLE webhooks DROP COLUMN header_names;
