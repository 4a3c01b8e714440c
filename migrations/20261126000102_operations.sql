-- migrate:up

-- Accepted operations that are not applied yet. The operations of an organization are applied in
-- the order of their sequence, which is assigned when they are accepted. If an operation was
-- confirmed before another was sent, it has the lower sequence and is visible first.
CREATE TABLE queued_operations (
    organization_id text COLLATE "C" NOT NULL,
    sequence bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    -- An element of the parameter of apply_writes.
    write json NOT NULL,
    CONSTRAINT queued_operations_pkey PRIMARY KEY (organization_id, sequence),
    CONSTRAINT queued_operations_by_id UNIQUE (organization_id, operation_id)
)
-- Rows are soon deleted. Dead rows slow down the search for the next operation.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- For finding the oldest operations. An expression, so that the planner does not use the index
-- for a query about one organization.
CREATE INDEX queued_operations_by_sequence ON queued_operations ((sequence + 0));

-- Vacuum cannot remove deleted rows while any session has an older snapshot, such as a backup or
-- a long report. So that a search for queued operations does not scan them, it starts at a
-- sequence below which nothing is queued or will be.
CREATE TABLE operation_queue_start (
    the_only boolean NOT NULL DEFAULT true,
    first_sequence bigint NOT NULL,
    -- Every transaction with rows up to settling_sequence has a lower id than
    -- settling_transaction.
    settling_sequence bigint NOT NULL,
    settling_transaction xid8 NOT NULL,
    CONSTRAINT operation_queue_start_pkey PRIMARY KEY (the_only),
    CONSTRAINT operation_queue_start_one_row CHECK (the_only)
);
INSERT INTO operation_queue_start (first_sequence, settling_sequence, settling_transaction)
VALUES (0, 0, pg_current_xact_id());

-- Finished operations, kept for a limited time. Inserted by the transaction that applies them.
CREATE TABLE operations (
    organization_id text COLLATE "C" NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    appointment_id text COLLATE "C" NOT NULL,
    -- An outcome of apply_writes, or FAILED.
    outcome text NOT NULL,
    organization_revision bigint NOT NULL,
    -- The history entry of the resulting appointment; NULL if the operation was refused.
    revision bigint,
    conflicts json,
    -- For a FAILED operation: the error of the database, and the write.
    failure text,
    write json,
    CONSTRAINT operations_pkey PRIMARY KEY (organization_id, operation_id)
);

-- For the purge.
CREATE INDEX operations_by_end ON operations (finished_at);

-- For lists of operations that were refused or FAILED.
CREATE INDEX operations_refused ON operations (organization_id, operation_id)
WHERE revision IS NULL;

-- Leases on organizations. Only the worker with the latest fence may apply queued operations.
CREATE TABLE operation_leases (
    organization_id text COLLATE "C" NOT NULL,
    fence bigint NOT NULL,
    leased_until timestamptz NOT NULL,
    -- Calls without a response since operations were last applied. If it is not 0, the
    -- organization's operations are applied one at a time in separate calls, so that they do not
    -- affect other organizations.
    attempts integer NOT NULL,
    CONSTRAINT operation_leases_pkey PRIMARY KEY (organization_id)
);

-- For accepting and listing operations.
GRANT SELECT, INSERT ON queued_operations TO appointments_service;
-- For listing operations, and deleting expired ones.
GRANT SELECT, DELETE ON operations TO appointments_service;
-- For releasing leases.
GRANT SELECT, UPDATE (leased_until, attempts) ON operation_leases TO appointments_service;

-- migrate:down

DROP TABLE operation_leases;
DROP TABLE operations;
DROP TABLE operation_queue_start;
DROP TABLE queued_operations;
