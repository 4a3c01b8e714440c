-- migrate:up

-- Webhooks and their progress. The history is the queue: changes after the cursor are sent.
CREATE TABLE webhooks (
    organization_id text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    url text NOT NULL,
    description text NOT NULL,
    -- The kinds of changes to send; empty for all.
    changes text [] NOT NULL,
    secret text NOT NULL,
    -- Newest first, with the time until which each signs.
    old_secrets text [] NOT NULL DEFAULT '{}',
    old_secrets_until timestamptz [] NOT NULL DEFAULT '{}',
    disabled boolean NOT NULL,
    disabled_reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Every change up to this revision was delivered or skipped.
    cursor_revision bigint NOT NULL,
    -- The number of failed attempts to send the next change, and the time of the first.
    attempts integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    -- Nothing is sent before this time. The webhook with the earliest time is served first.
    next_attempt_at timestamptz NOT NULL,
    -- The lease of a worker. It updates the row only if the fence has not changed since.
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    fence bigint NOT NULL DEFAULT 0,
    -- The caller's own headers, sent with every change. Like secrets, their values are read only
    -- by workers.
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

-- For finding due webhooks. Failing ones have a separate index, so that they do not delay the
-- others, however many there are.
CREATE INDEX webhooks_due ON webhooks (next_attempt_at)
WHERE NOT disabled AND attempts = 0;

CREATE INDEX webhooks_failing ON webhooks (next_attempt_at)
WHERE NOT disabled AND attempts > 0;

-- Every attempt, kept for a limited time, also after the webhook is deleted.
CREATE TABLE webhook_deliveries (
    organization_id text COLLATE "C" NOT NULL,
    webhook_id text COLLATE "C" NOT NULL,
    delivery_id bigint GENERATED ALWAYS AS IDENTITY,
    revision bigint NOT NULL,
    attempt integer NOT NULL,
    attempted_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    -- NULL if there was no response.
    http_status integer,
    -- Empty if the change was delivered.
    error text NOT NULL,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (organization_id, webhook_id, delivery_id)
);

CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (attempted_at);

-- The role cannot read secrets and header values, and creates webhooks by a function.
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
