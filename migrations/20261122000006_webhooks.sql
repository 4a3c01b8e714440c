-- migrate:up

-- Where changes of an organization are sent, and how far. The history is the queue: what
-- comes after the cursor is to be sent.
CREATE TABLE webhooks (
    organization_id text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    -- Kinds of changes to send; empty for all.
    changes text [] NOT NULL,
    secret text NOT NULL,
    -- Newest first, and until when each goes on signing.
    old_secrets text [] NOT NULL DEFAULT '{}',
    old_secrets_until timestamptz [] NOT NULL DEFAULT '{}',
    disabled boolean NOT NULL,
    disabled_reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Everything up to this revision was taken, or passed over.
    cursor_revision bigint NOT NULL,
    -- How often sending the next change has failed, and since when.
    attempts integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    -- Not before this; of those that may be sent to, the one that has waited longest is
    -- the first.
    next_attempt_at timestamptz NOT NULL,
    -- A worker has it until then, and writes to it only while the fence is the one that
    -- it took it with.
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    fence bigint NOT NULL DEFAULT 0,
    CONSTRAINT webhooks_pkey PRIMARY KEY (organization_id, webhook_id),
    CONSTRAINT webhooks_changes_known CHECK (changes <@ '{CREATED,UPDATED,CANCELLED}'::text []),
    CONSTRAINT webhooks_old_secrets_end
    CHECK (cardinality(old_secrets) = cardinality(old_secrets_until)),
    CONSTRAINT webhooks_cursor_not_negative CHECK (cursor_revision >= 0),
    CONSTRAINT webhooks_failing_is_dated CHECK ((attempts > 0) = (failing_since IS NOT NULL))
);

-- What may be sent to now. Those that fail have an index of their own, so that however
-- many they are they stand in nobody's way.
CREATE INDEX webhooks_due ON webhooks (next_attempt_at)
WHERE NOT disabled AND attempts = 0;

CREATE INDEX webhooks_failing ON webhooks (next_attempt_at)
WHERE NOT disabled AND attempts > 0;

-- Every attempt, for a limited time; those of a deleted webhook stay until then too.
CREATE TABLE webhook_deliveries (
    organization_id text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    delivery_id bigint GENERATED ALWAYS AS IDENTITY,
    revision bigint NOT NULL,
    attempt integer NOT NULL,
    attempted_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    -- NULL: no answer came.
    http_status integer,
    -- Empty: it was taken.
    error text NOT NULL,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (organization_id, webhook_id, delivery_id)
);

CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (attempted_at);

-- Stores a webhook that begins after a revision, by default the organization's latest,
-- unless the organization has p_most already. Creations of one organization wait for
-- each other, so that none is too many.
--
-- outcome: CREATED, LIMIT_REACHED, or BEYOND for a revision that does not exist yet.
CREATE FUNCTION create_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_url text,
    p_description text,
    p_changes text [],
    p_disabled boolean,
    p_secret text,
    p_after_revision bigint,
    p_most integer
)
RETURNS TABLE (outcome text, organization_revision bigint)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
AS $$
DECLARE
    v_revision bigint;
BEGIN
    -- Not the writes' lock: another seed.
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
            organization_id, webhook_id, url, description, changes, secret, disabled,
            created_at, updated_at, cursor_revision, next_attempt_at
        ) VALUES (
            p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_secret, p_disabled,
            now(), now(), coalesce(p_after_revision, v_revision), now()
        );
        RETURN QUERY SELECT 'CREATED', v_revision;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION create_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook TO appointments_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks TO appointments_service;
GRANT SELECT, INSERT, DELETE ON webhook_deliveries TO appointments_service;

-- migrate:down

DROP FUNCTION create_webhook;
DROP TABLE webhook_deliveries;
DROP TABLE webhooks;
