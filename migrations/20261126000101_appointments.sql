-- migrate:up

DO $$
BEGIN
    IF EXISTS (SELECT FROM schema_migrations WHERE version < '20261126000101') THEN
        RAISE EXCEPTION 'the database has migrations of an old version: see CHANGELOG.md';
    END IF;
END
$$;

-- For equality on text and overlap of ranges in one GiST index. The extension is trusted: the
-- owner of the database may create it.
CREATE EXTENSION IF NOT EXISTS btree_gist;

-- The role of the service. It cannot log in; it is granted to the user of DATABASE_URL. Roles
-- are shared by all databases of a server, so it may exist already.
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
    -- Another user created the role. The user of DATABASE_URL may already be a member.
    RAISE WARNING 'for %, an administrator must: GRANT appointments_service TO ...', CURRENT_USER;
END
$$;

-- A function that another user creates in this schema could be called instead of a built-in
-- one. This is the default for databases created by PostgreSQL 15 or later.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO appointments_service;
GRANT SELECT ON schema_migrations TO appointments_service;

-- Ids are compared as bytes (COLLATE "C"). The order is the same on every system, and an upgrade
-- of the operating system's collations cannot corrupt the indexes that refuse overlaps.

-- The latest revision of each organization.
CREATE TABLE organizations (
    organization_id text COLLATE "C" NOT NULL,
    -- The number of the latest change, from 1 without gaps.
    revision bigint NOT NULL,
    -- When it was recorded. Never decreases, even if the server's clock is set back.
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
    -- json, not jsonb: the text is kept, and numbers with large exponents are not expanded.
    attributes json NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Whether the caller sent updated_at. Writes with an older one are stale then. Otherwise it
    -- is the time of recording.
    updated_at_given boolean NOT NULL,
    state text NOT NULL,
    version integer NOT NULL,
    revision bigint NOT NULL,
    -- The updated_at of the cancel, if the caller sent one. Writes with an older one are stale.
    -- It is never before the caller's updated_at of the content.
    cancel_updated_at timestamptz,
    CONSTRAINT appointments_pkey PRIMARY KEY (organization_id, appointment_id),
    CONSTRAINT appointments_start_before_end CHECK (start_time < end_time),
    CONSTRAINT appointments_state_known CHECK (state IN ('ACTIVE', 'CANCELLED')),
    CONSTRAINT appointments_version_positive CHECK (version > 0),
    -- apply_writes checks for overlaps first. The constraint also applies to hand-written SQL.
    CONSTRAINT appointments_no_overlap EXCLUDE USING gist (
        organization_id WITH =,
        resource_id WITH =,
        tstzrange(start_time, end_time) WITH &&
    ) WHERE (state = 'ACTIVE')
);

-- For finding overlaps with a new range, and for lists of one resource.
CREATE INDEX appointments_by_resource ON appointments (organization_id, resource_id, start_time)
WHERE state = 'ACTIVE';

-- For lists of an organization, ordered by start and id.
CREATE INDEX appointments_by_start ON appointments (organization_id, start_time, appointment_id);

-- For lists of cancelled appointments that overlap a range. Active ones are found by the index
-- of the exclusion constraint.
CREATE INDEX appointments_cancelled_range ON appointments
USING gist (organization_id, tstzrange(start_time, end_time))
WHERE state = 'CANCELLED';

-- Every change, with the appointment as it was after the change. Used as audit trail and change
-- feed, and for reads at an earlier revision. The service's role can only read it.
CREATE TABLE appointment_history (
    organization_id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    change text NOT NULL,
    recorded_at timestamptz NOT NULL,
    actor text NOT NULL,
    idempotency_key text COLLATE "C",
    -- Distinguishes a repeated write from a different write with the same key.
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

-- Writes with an idempotency key that changed nothing (UNCHANGED, STALE). The keys of other
-- writes are in the history. A key is in at most one of the two tables and is never deleted.
CREATE TABLE unchanged_writes (
    organization_id text COLLATE "C" NOT NULL,
    idempotency_key text COLLATE "C" NOT NULL,
    idempotency_digest bytea NOT NULL,
    outcome text NOT NULL,
    -- The history entry that has the appointment as returned to the caller.
    revision bigint NOT NULL,
    CONSTRAINT unchanged_writes_pkey PRIMARY KEY (organization_id, idempotency_key),
    CONSTRAINT unchanged_writes_outcome_known CHECK (outcome IN ('UNCHANGED', 'STALE'))
);

-- The role writes only by calling functions.
GRANT SELECT ON organizations, appointments, appointment_history TO appointments_service;

-- migrate:down

-- The role is not dropped: another database of the server may use it.
REVOKE ALL ON SCHEMA public FROM appointments_service;
REVOKE ALL ON schema_migrations FROM appointments_service;
DROP TABLE unchanged_writes;
DROP TABLE appointment_history;
DROP TABLE appointments;
DROP TABLE organizations;
DROP EXTENSION btree_gist;
