-- migrate:up

DO $$
BEGIN
    IF EXISTS (SELECT FROM schema_migrations WHERE version < '20261126000101') THEN
        RAISE EXCEPTION 'former migrations made this database: CHANGELOG.md says how to go on';
    END IF;
END
$$;

-- Equality on text beside a range in one GiST index. It is a trusted extension: the owner of
-- the database may create it.
CREATE EXTENSION IF NOT EXISTS btree_gist;

-- The role that the service works as. It cannot log in: it is granted to the user of
-- DATABASE_URL. Roles belong to the whole server, so another database may have made it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'appointments_service') THEN
        CREATE ROLE appointments_service NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

DO $$
BEGIN
    GRANT appointments_service TO CURRENT_USER;
EXCEPTION WHEN insufficient_privilege THEN
    -- Another user made the role; the user of DATABASE_URL may be a member of it already.
    RAISE WARNING 'for %, an administrator must: GRANT appointments_service TO ...', CURRENT_USER;
END
$$;

-- Somebody else's function in this schema might be taken for one of PostgreSQL's. New
-- databases have it so since PostgreSQL 15, older ones do not.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO appointments_service;
GRANT SELECT ON schema_migrations TO appointments_service;

-- Ids are compared by their bytes (COLLATE "C"): the same everywhere, and no upgrade of
-- the operating system's collations can break the indexes that refuse overlaps.

-- The clock of each organization.
CREATE TABLE organizations (
    organization_id text COLLATE "C" NOT NULL,
    -- The latest change; counts from 1 without gaps.
    revision bigint NOT NULL,
    -- When that was recorded; never decreases, even if the server's clock does.
    recorded_at timestamptz NOT NULL,
    CONSTRAINT organizations_pkey PRIMARY KEY (organization_id),
    CONSTRAINT organizations_revision_positive CHECK (revision > 0)
);

CREATE TABLE appointments (
    organization_id text COLLATE "C" NOT NULL,
    appointment_id text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C" NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    title text NOT NULL,
    -- json, not jsonb: the text is kept as it was written, and huge exponents stay short.
    attributes json NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Whether updated_at is the caller's (then it guards against stale writes) or the
    -- time of the commit.
    updated_at_given boolean NOT NULL,
    state text NOT NULL,
    version integer NOT NULL,
    revision bigint NOT NULL,
    -- The updated_at that the cancel of a cancelled appointment came with, if any: it guards
    -- against stale writes as that of the content does, and is never older.
    cancel_updated_at timestamptz,
    CONSTRAINT appointments_pkey PRIMARY KEY (organization_id, appointment_id),
    CONSTRAINT appointments_start_before_end CHECK (start_time < end_time),
    CONSTRAINT appointments_state_known CHECK (state IN ('ACTIVE', 'CANCELLED')),
    CONSTRAINT appointments_version_positive CHECK (version > 0),
    -- apply_writes checks first; this holds for hand-written SQL too.
    CONSTRAINT appointments_no_overlap EXCLUDE USING gist (
        organization_id WITH =,
        resource_id WITH =,
        tstzrange(start_time, end_time) WITH &&
    ) WHERE (state = 'ACTIVE')
);

-- The nearest neighbours of a new range, and lists of one resource.
CREATE INDEX appointments_by_resource ON appointments (organization_id, resource_id, start_time)
WHERE state = 'ACTIVE';

-- Lists of a whole organization, by start then id.
CREATE INDEX appointments_by_start ON appointments (organization_id, start_time, appointment_id);

-- Cancelled appointments that were running at a time; active ones are found through the
-- index of the exclusion constraint.
CREATE INDEX appointments_cancelled_range ON appointments
USING gist (organization_id, tstzrange(start_time, end_time))
WHERE state = 'CANCELLED';

-- Every change, with the appointment as it was after it: audit trail, change feed and reads
-- of the past in one table. The service's role may only read it.
CREATE TABLE appointment_history (
    organization_id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    change text NOT NULL,
    recorded_at timestamptz NOT NULL,
    actor text NOT NULL,
    idempotency_key text COLLATE "C",
    -- Distinguishes a repeated write from a different one under the same key.
    idempotency_digest bytea,
    appointment_id text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C" NOT NULL,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    title text NOT NULL,
    attributes json NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    state text NOT NULL,
    version integer NOT NULL,
    CONSTRAINT appointment_history_pkey PRIMARY KEY (organization_id, revision),
    CONSTRAINT appointment_history_change_known CHECK (change IN ('CREATED', 'UPDATED', 'CANCELLED')),
    CONSTRAINT appointment_history_key_has_digest
    CHECK ((idempotency_key IS NULL) = (idempotency_digest IS NULL))
);

CREATE INDEX appointment_history_by_appointment
ON appointment_history (organization_id, appointment_id, revision);

CREATE UNIQUE INDEX appointment_history_idempotency_key
ON appointment_history (organization_id, idempotency_key)
WHERE idempotency_key IS NOT NULL;

-- Writes with an idempotency key that changed nothing, UNCHANGED or STALE. Those that changed
-- something have their key in the history. A key is in at most one of the two, and is kept
-- for ever.
CREATE TABLE unchanged_writes (
    organization_id text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    idempotency_digest bytea NOT NULL,
    outcome text NOT NULL,
    -- The entry of the history that has the appointment as the answer showed it.
    revision bigint NOT NULL,
    CONSTRAINT unchanged_writes_pkey PRIMARY KEY (organization_id, idempotency_key),
    CONSTRAINT unchanged_writes_outcome_known CHECK (outcome IN ('UNCHANGED', 'STALE'))
);

-- The role writes by calling functions only.
GRANT SELECT ON organizations, appointments, appointment_history TO appointments_service;

-- migrate:down

-- The role stays: another database of the server may use it.
REVOKE ALL ON SCHEMA public FROM appointments_service;
REVOKE ALL ON schema_migrations FROM appointments_service;
DROP TABLE unchanged_writes;
DROP TABLE appointment_history;
DROP TABLE appointments;
DROP TABLE organizations;
DROP EXTENSION btree_gist;
