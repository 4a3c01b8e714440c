-- migrate:up

-- The progress of each consumer of changes, by organization.
CREATE TABLE event_cursors (
    organization_id text COLLATE "C" NOT NULL,
    consumer text COLLATE "C" NOT NULL,
    -- Every change up to this revision is published.
    revision bigint NOT NULL,
    CONSTRAINT event_cursors_pkey PRIMARY KEY (organization_id, consumer),
    CONSTRAINT event_cursors_revision_positive CHECK (revision > 0)
);

-- Leases on consumers. Only the worker with the stored fence publishes. When the lease has
-- expired, another worker can take it over with the next fence.
CREATE TABLE event_publishers (
    consumer text COLLATE "C" NOT NULL,
    fence bigint NOT NULL,
    leased_until timestamptz NOT NULL,
    CONSTRAINT event_publishers_pkey PRIMARY KEY (consumer)
);

GRANT SELECT, INSERT, UPDATE ON event_cursors, event_publishers TO appointments_service;

-- migrate:down

DROP TABLE event_publishers;
DROP TABLE event_cursors;
