-- migrate:up

-- How far each consumer of the changes has got, by organization.
CREATE TABLE event_cursors (
    organization_id text COLLATE "C" NOT NULL,
    consumer text COLLATE "C" NOT NULL,
    -- Every change up to this one is known to be published.
    revision bigint NOT NULL,
    CONSTRAINT event_cursors_pkey PRIMARY KEY (organization_id, consumer),
    CONSTRAINT event_cursors_revision_positive CHECK (revision > 0)
);

-- Which worker serves a consumer: the one whose fence is stored. Another may take over
-- with the next fence when the lease has ended.
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
