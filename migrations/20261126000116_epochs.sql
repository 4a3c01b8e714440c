-- migrate:up

-- The times at which the organizations' revisions began to count anew: after the database was
-- restored to an earlier time. The first epoch has no row.
CREATE TABLE epochs (
    -- In whole seconds, and later than any before.
    began_at timestamptz NOT NULL,
    CONSTRAINT epochs_pkey PRIMARY KEY (began_at)
);

GRANT SELECT ON epochs TO appointments_service, appointments_caller;

-- migrate:down

DROP TABLE epochs;
