-- migrate:up

-- What is left of the rate limits of credentials and organizations. Losing it is harmless: without
-- a row, everything is left. So it is not logged, and a standby does not have it.
CREATE UNLOGGED TABLE request_buckets (
    -- A hash of the limit and of its credential or organization.
    name bytea NOT NULL,
    -- Negative while more was used than the limit permits.
    level double precision NOT NULL,
    counted_at timestamptz NOT NULL,
    CONSTRAINT request_buckets_pkey PRIMARY KEY (name)
)
-- Rows are updated several times a second, without touching the index.
WITH (fillfactor = 50);

GRANT SELECT, INSERT, UPDATE, DELETE ON request_buckets
TO appointments_service, appointments_caller;

-- migrate:down

DROP TABLE request_buckets;
