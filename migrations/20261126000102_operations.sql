-- migrate:up

-- Operations that were accepted and are not applied yet. Those of one organization are
-- applied in the order of their sequence. It is given when an operation is accepted, so one
-- that was answered before another was sent has the lower one, and is seen no later.
CREATE TABLE queued_operations (
    organization_id text COLLATE "C" NOT NULL,
    sequence bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    -- An element of apply_writes' writes.
    write json NOT NULL,
    CONSTRAINT queued_operations_pkey PRIMARY KEY (organization_id, sequence),
    CONSTRAINT queued_operations_by_id UNIQUE (organization_id, operation_id)
)
-- Rows come and go; dead ones slow down the search for the next.
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- For finding the oldest of all. An expression, so that no look into one organization is
-- planned along it.
CREATE INDEX queued_operations_by_sequence ON queued_operations ((sequence + 0));

-- Applied rows stay in the table and its indexes as long as any session has an older snapshot,
-- such as a backup or a long report, and vacuum cannot help. So that the search for queued
-- operations does not pass all of them, it begins at a sequence below which nothing is queued
-- and nothing ever will be.
CREATE TABLE operation_queue_start (
    the_only boolean NOT NULL DEFAULT true,
    first_sequence bigint NOT NULL,
    -- Every transaction that was given a sequence up to this one began before that one.
    settling_sequence bigint NOT NULL,
    settling_transaction xid8 NOT NULL,
    CONSTRAINT operation_queue_start_pkey PRIMARY KEY (the_only),
    CONSTRAINT operation_queue_start_one_row CHECK (the_only)
);
INSERT INTO operation_queue_start (first_sequence, settling_sequence, settling_transaction)
VALUES (0, 0, pg_current_xact_id());

-- Finished operations, kept for a time. Written in the transaction that applied them.
CREATE TABLE operations (
    organization_id text COLLATE "C" NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    appointment_id text COLLATE "C" NOT NULL,
    -- An outcome of apply_writes, or FAILED.
    outcome text NOT NULL,
    organization_revision bigint NOT NULL,
    -- The entry of the history that has the appointment after it; NULL if it was refused.
    revision bigint,
    conflicts json,
    -- Of a FAILED operation: the database's error, and what was to be written.
    failure text,
    write json,
    CONSTRAINT operations_pkey PRIMARY KEY (organization_id, operation_id)
);

-- For the purge.
CREATE INDEX operations_by_end ON operations (finished_at);

-- For finding those that were refused, or FAILED, among all the others.
CREATE INDEX operations_refused ON operations (organization_id, operation_id)
WHERE revision IS NULL;

-- Who may apply an organization's queued operations: the holder of the latest fence.
CREATE TABLE operation_leases (
    organization_id text COLLATE "C" NOT NULL,
    fence bigint NOT NULL,
    leased_until timestamptz NOT NULL,
    -- Calls that ended without an answer since operations were last applied. From the first
    -- on, the organization's operations are applied one at a time, in calls of its own, so
    -- that others do not suffer from them.
    attempts integer NOT NULL,
    CONSTRAINT operation_leases_pkey PRIMARY KEY (organization_id)
);

-- To accept, and to list.
GRANT SELECT, INSERT ON queued_operations TO appointments_service;
-- To list, and to delete what has been kept for long enough.
GRANT SELECT, DELETE ON operations TO appointments_service;
-- To give leases back.
GRANT SELECT, UPDATE (leased_until, attempts) ON operation_leases TO appointments_service;

-- migrate:down

DROP TABLE operation_leases;
DROP TABLE operations;
DROP TABLE operation_queue_start;
DROP TABLE queued_operations;
