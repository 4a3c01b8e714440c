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
    -- Newest first, and until when each of them signs.
    old_secrets text [] NOT NULL DEFAULT '{}',
    old_secrets_until timestamptz [] NOT NULL DEFAULT '{}',
    disabled boolean NOT NULL,
    disabled_reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Everything up to this revision was delivered, or skipped.
    cursor_revision bigint NOT NULL,
    -- How often sending the next change has failed, and since when.
    attempts integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    -- Not before this; of those that are due, the one that has waited longest is the first.
    next_attempt_at timestamptz NOT NULL,
    -- A worker has the webhook until then, and writes to it only while the fence is the one
    -- that it took it with.
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    fence bigint NOT NULL DEFAULT 0,
    -- Headers of the caller's own, sent with every change. Only the worker that sends them
    -- reads their values, as it reads the secrets.
    header_names text [] NOT NULL DEFAULT '{}',
    header_values text [] NOT NULL DEFAULT '{}',
    CONSTRAINT webhooks_pkey PRIMARY KEY (organization_id, webhook_id),
    CONSTRAINT webhooks_changes_known CHECK (changes <@ '{CREATED,UPDATED,CANCELLED}'::text []),
    CONSTRAINT webhooks_old_secrets_end
    CHECK (cardinality(old_secrets) = cardinality(old_secrets_until)),
    CONSTRAINT webhooks_cursor_not_negative CHECK (cursor_revision >= 0),
    CONSTRAINT webhooks_failing_is_dated CHECK ((attempts > 0) = (failing_since IS NOT NULL)),
    CONSTRAINT webhooks_headers_have_values
    CHECK (cardinality(header_names) = cardinality(header_values))
);

-- What is due. Failing ones have an index of their own, so that they do not delay the others,
-- however many they are.
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
    -- NULL if no answer came.
    http_status integer,
    -- Empty if it was delivered.
    error text NOT NULL,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (organization_id, webhook_id, delivery_id)
);

CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (attempted_at);

-- The role does not see secrets and values of headers, and creates webhooks by a function.
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
GRANT SELECT, INSERT, DELETE ON webhook_deliveries TO appointments_service;

-- migrate:down

DROP TABLE webhook_deliveries;
DROP TABLE webhooks;
