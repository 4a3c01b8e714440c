-- The tables, indexes, constraints and privileges after all migrations, for reading only.
-- `make schema` writes this file. Comments are in the migrations.

CREATE SCHEMA own;

CREATE EXTENSION IF NOT EXISTS btree_gist WITH SCHEMA public;

CREATE TABLE public.appointments (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    appointment_id text NOT NULL COLLATE pg_catalog."C",
    resource_id text NOT NULL COLLATE pg_catalog."C",
    start_time timestamp with time zone NOT NULL,
    end_time timestamp with time zone NOT NULL,
    title text NOT NULL,
    attributes json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    updated_at_given boolean NOT NULL,
    state text NOT NULL,
    version integer NOT NULL,
    revision bigint NOT NULL,
    cancel_updated_at timestamp with time zone,
    ordinal smallint DEFAULT 0 NOT NULL,
    additional_resource_ids text[] COLLATE pg_catalog."C",
    hold_until timestamp with time zone,
    redacted_at timestamp with time zone,
    redacted_updated_at timestamp with time zone,
    CONSTRAINT appointments_start_before_end CHECK ((start_time < end_time)),
    CONSTRAINT appointments_state_known CHECK ((state = ANY (
CASE
    WHEN (hold_until IS NULL) THEN '{ACTIVE,CANCELLED}'::text[]
    ELSE '{HELD,EXPIRED,CANCELLED}'::text[]
END))),
    CONSTRAINT appointments_version_positive CHECK ((version > 0))
);
ALTER TABLE ONLY public.appointments ALTER COLUMN title SET STATISTICS 0;

CREATE TABLE public.appointment_history (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    change text NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    actor text NOT NULL,
    idempotency_key text COLLATE pg_catalog."C",
    idempotency_digest bytea,
    appointment_id text NOT NULL COLLATE pg_catalog."C",
    resource_id text NOT NULL COLLATE pg_catalog."C",
    start_time timestamp with time zone NOT NULL,
    end_time timestamp with time zone NOT NULL,
    title text NOT NULL,
    attributes json NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    state text NOT NULL,
    version integer NOT NULL,
    additional_resource_ids text[] COLLATE pg_catalog."C",
    hold_until timestamp with time zone,
    released_resource_ids text[] COLLATE pg_catalog."C",
    placed boolean DEFAULT true NOT NULL,
    trace_context text,
    CONSTRAINT appointment_history_key_has_digest CHECK (((idempotency_key IS NULL) = (idempotency_digest IS NULL)))
);
ALTER TABLE ONLY public.appointment_history ALTER COLUMN actor SET STATISTICS 0;
ALTER TABLE ONLY public.appointment_history ALTER COLUMN title SET STATISTICS 0;
ALTER TABLE ONLY public.appointment_history ALTER COLUMN trace_context SET STATISTICS 0;

CREATE VIEW own.appointment_history AS
 SELECT organization_id,
    revision,
    change,
    recorded_at,
    actor,
    idempotency_key,
    idempotency_digest,
    appointment_id,
    resource_id,
    start_time,
    end_time,
    title,
    attributes,
    created_at,
    updated_at,
    state,
    version,
    additional_resource_ids,
    hold_until,
    released_resource_ids,
    placed,
    trace_context
   FROM public.appointment_history
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE VIEW own.appointments AS
 SELECT organization_id,
    appointment_id,
    resource_id,
    start_time,
    end_time,
    title,
    attributes,
    created_at,
    updated_at,
    updated_at_given,
    state,
    version,
    revision,
    cancel_updated_at,
    ordinal,
    additional_resource_ids,
    hold_until,
    redacted_at,
    redacted_updated_at
   FROM public.appointments
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.erased_keys (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    key_digest bytea NOT NULL
);

CREATE VIEW own.erased_keys AS
 SELECT organization_id,
    key_digest
   FROM public.erased_keys
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.event_cursors (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    consumer text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    CONSTRAINT event_cursors_revision_positive CHECK ((revision > 0))
);

CREATE VIEW own.event_cursors AS
 SELECT organization_id,
    consumer,
    revision
   FROM public.event_cursors
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.operation_leases (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    fence bigint NOT NULL,
    leased_until timestamp with time zone NOT NULL,
    attempts integer NOT NULL
);

CREATE VIEW own.operation_leases AS
 SELECT organization_id,
    fence,
    leased_until,
    attempts
   FROM public.operation_leases
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.operations (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    operation_id uuid NOT NULL,
    accepted_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone NOT NULL,
    appointment_id text NOT NULL COLLATE pg_catalog."C",
    outcome text NOT NULL,
    organization_revision bigint NOT NULL,
    revision bigint,
    conflicts json,
    failure text,
    write json,
    alternatives json
);

CREATE VIEW own.operations AS
 SELECT organization_id,
    operation_id,
    accepted_at,
    finished_at,
    appointment_id,
    outcome,
    organization_revision,
    revision,
    conflicts,
    failure,
    write,
    alternatives
   FROM public.operations
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.organizations (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    CONSTRAINT organizations_revision_positive CHECK ((revision > 0))
);

CREATE VIEW own.organizations AS
 SELECT organization_id,
    revision,
    recorded_at
   FROM public.organizations
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.purged_organizations (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    purged_at timestamp with time zone NOT NULL
);

CREATE VIEW own.purged_organizations AS
 SELECT organization_id,
    purged_at
   FROM public.purged_organizations
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.queued_operations (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    sequence bigint NOT NULL,
    operation_id uuid NOT NULL,
    accepted_at timestamp with time zone NOT NULL,
    write json NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');

CREATE VIEW own.queued_operations AS
 SELECT organization_id,
    sequence,
    operation_id,
    accepted_at,
    write
   FROM public.queued_operations
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.unchanged_writes (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    idempotency_key text NOT NULL COLLATE pg_catalog."C",
    idempotency_digest bytea NOT NULL,
    outcome text NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT unchanged_writes_outcome_known CHECK ((outcome = ANY (ARRAY['UNCHANGED'::text, 'STALE'::text])))
);

CREATE VIEW own.unchanged_writes AS
 SELECT organization_id,
    idempotency_key,
    idempotency_digest,
    outcome,
    revision
   FROM public.unchanged_writes
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.webhook_deliveries (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    webhook_id text NOT NULL COLLATE pg_catalog."C",
    delivery_id bigint NOT NULL,
    revision bigint NOT NULL,
    attempt integer NOT NULL,
    attempted_at timestamp with time zone NOT NULL,
    duration_ms integer NOT NULL,
    http_status integer,
    error text NOT NULL
);

CREATE VIEW own.webhook_deliveries AS
 SELECT organization_id,
    webhook_id,
    delivery_id,
    revision,
    attempt,
    attempted_at,
    duration_ms,
    http_status,
    error
   FROM public.webhook_deliveries
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.webhooks (
    organization_id text NOT NULL COLLATE pg_catalog."C",
    webhook_id text NOT NULL COLLATE pg_catalog."C",
    url text NOT NULL,
    description text NOT NULL,
    changes text[] NOT NULL,
    secret text NOT NULL,
    old_secrets text[] DEFAULT '{}'::text[] NOT NULL,
    old_secrets_until timestamp with time zone[] DEFAULT '{}'::timestamp with time zone[] NOT NULL,
    disabled boolean NOT NULL,
    disabled_reason text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    cursor_revision bigint NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    failing_since timestamp with time zone,
    next_attempt_at timestamp with time zone NOT NULL,
    leased_until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    fence bigint DEFAULT 0 NOT NULL,
    header_names text[] DEFAULT '{}'::text[] NOT NULL,
    header_values text[] DEFAULT '{}'::text[] NOT NULL,
    resource_id text COLLATE pg_catalog."C",
    CONSTRAINT webhooks_cursor_not_negative CHECK ((cursor_revision >= 0)),
    CONSTRAINT webhooks_failing_is_dated CHECK (((attempts > 0) = (failing_since IS NOT NULL))),
    CONSTRAINT webhooks_headers_have_values CHECK ((cardinality(header_names) = cardinality(header_values))),
    CONSTRAINT webhooks_old_secrets_end CHECK ((cardinality(old_secrets) = cardinality(old_secrets_until)))
);

CREATE VIEW own.webhooks AS
 SELECT organization_id,
    webhook_id,
    url,
    description,
    changes,
    secret,
    old_secrets,
    old_secrets_until,
    disabled,
    disabled_reason,
    created_at,
    updated_at,
    cursor_revision,
    attempts,
    failing_since,
    next_attempt_at,
    leased_until,
    fence,
    header_names,
    header_values,
    resource_id
   FROM public.webhooks
  WHERE (organization_id = current_setting('appointments.organization'::text, true))
  WITH CASCADED CHECK OPTION;

CREATE TABLE public.api_keys (
    key_id text NOT NULL,
    subject text NOT NULL,
    organizations text[],
    scopes text[] NOT NULL,
    secret_hash bytea NOT NULL,
    former_secret_hash bytea,
    former_secret_until timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    version bigint NOT NULL,
    CONSTRAINT api_keys_hash_is_sha256 CHECK (((octet_length(secret_hash) = 32) AND (octet_length(former_secret_hash) = 32)))
);

CREATE SEQUENCE public.api_key_versions
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.api_key_versions OWNED BY public.api_keys.version;

CREATE TABLE public.epochs (
    began_at timestamp with time zone NOT NULL
);

CREATE TABLE public.event_publishers (
    consumer text NOT NULL COLLATE pg_catalog."C",
    fence bigint NOT NULL,
    leased_until timestamp with time zone NOT NULL
);

CREATE TABLE public.operation_queue_start (
    the_only boolean DEFAULT true NOT NULL,
    first_sequence bigint NOT NULL,
    settling_sequence bigint NOT NULL,
    settling_transaction xid8 NOT NULL,
    CONSTRAINT operation_queue_start_one_row CHECK (the_only)
);

ALTER TABLE public.queued_operations ALTER COLUMN sequence ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.queued_operations_sequence_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE UNLOGGED TABLE public.request_buckets (
    name bytea NOT NULL,
    level double precision NOT NULL,
    counted_at timestamp with time zone NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE public.webhook_deliveries ALTER COLUMN delivery_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.webhook_deliveries_delivery_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (key_id);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_version_key UNIQUE (version);

ALTER TABLE ONLY public.appointment_history
    ADD CONSTRAINT appointment_history_pkey PRIMARY KEY (organization_id, revision);

ALTER TABLE ONLY public.appointments
    ADD CONSTRAINT appointments_no_overlap EXCLUDE USING gist (organization_id WITH =, resource_id WITH =, tstzrange(start_time, end_time) WITH &&) WHERE ((state = ANY (ARRAY['ACTIVE'::text, 'HELD'::text]))) DEFERRABLE;

ALTER TABLE ONLY public.appointments
    ADD CONSTRAINT appointments_pkey PRIMARY KEY (organization_id, appointment_id, ordinal);

ALTER TABLE ONLY public.epochs
    ADD CONSTRAINT epochs_pkey PRIMARY KEY (began_at);

ALTER TABLE ONLY public.erased_keys
    ADD CONSTRAINT erased_keys_pkey PRIMARY KEY (organization_id, key_digest);

ALTER TABLE ONLY public.event_cursors
    ADD CONSTRAINT event_cursors_pkey PRIMARY KEY (organization_id, consumer);

ALTER TABLE ONLY public.event_publishers
    ADD CONSTRAINT event_publishers_pkey PRIMARY KEY (consumer);

ALTER TABLE ONLY public.operation_leases
    ADD CONSTRAINT operation_leases_pkey PRIMARY KEY (organization_id);

ALTER TABLE ONLY public.operation_queue_start
    ADD CONSTRAINT operation_queue_start_pkey PRIMARY KEY (the_only);

ALTER TABLE ONLY public.operations
    ADD CONSTRAINT operations_pkey PRIMARY KEY (organization_id, operation_id);

ALTER TABLE ONLY public.organizations
    ADD CONSTRAINT organizations_pkey PRIMARY KEY (organization_id);

ALTER TABLE ONLY public.purged_organizations
    ADD CONSTRAINT purged_organizations_pkey PRIMARY KEY (organization_id);

ALTER TABLE ONLY public.queued_operations
    ADD CONSTRAINT queued_operations_by_id UNIQUE (organization_id, operation_id);

ALTER TABLE ONLY public.queued_operations
    ADD CONSTRAINT queued_operations_pkey PRIMARY KEY (organization_id, sequence);

ALTER TABLE ONLY public.request_buckets
    ADD CONSTRAINT request_buckets_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.unchanged_writes
    ADD CONSTRAINT unchanged_writes_pkey PRIMARY KEY (organization_id, idempotency_key);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (organization_id, webhook_id, delivery_id);

ALTER TABLE public.webhooks
    ADD CONSTRAINT webhooks_changes_known CHECK ((changes <@ '{CREATED,UPDATED,CONFIRMED,EXPIRED,CANCELLED,REDACTED}'::text[])) NOT VALID;

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (organization_id, webhook_id);

CREATE INDEX appointment_history_by_appointment ON public.appointment_history USING btree (organization_id, appointment_id, revision);
CREATE INDEX appointment_history_by_start ON public.appointment_history USING btree (organization_id, start_time, appointment_id, revision, end_time, resource_id) WHERE placed;
CREATE UNIQUE INDEX appointment_history_idempotency_key ON public.appointment_history USING btree (organization_id, idempotency_key) WHERE (idempotency_key IS NOT NULL);
CREATE INDEX appointment_history_long_ranges ON public.appointment_history USING gist (organization_id, tstzrange(start_time, end_time)) WHERE (placed AND ((end_time - start_time) > '08:00:00'::interval));
CREATE INDEX appointment_history_shared ON public.appointment_history USING btree (organization_id, start_time, appointment_id, revision, end_time) WHERE (placed AND (additional_resource_ids IS NOT NULL));
CREATE INDEX appointments_by_additional_resource ON public.appointments USING btree (organization_id, resource_id, start_time, appointment_id) WHERE (ordinal > 0);
CREATE INDEX appointments_by_resource ON public.appointments USING btree (organization_id, resource_id, start_time) WHERE (state = ANY (ARRAY['ACTIVE'::text, 'HELD'::text]));
CREATE INDEX appointments_by_start ON public.appointments USING btree (organization_id, start_time, appointment_id);
CREATE INDEX appointments_free_range ON public.appointments USING gist (organization_id, tstzrange(start_time, end_time)) WHERE (state = ANY (ARRAY['EXPIRED'::text, 'CANCELLED'::text]));
CREATE INDEX appointments_held ON public.appointments USING btree (hold_until) WHERE ((state = 'HELD'::text) AND (ordinal = 0));
CREATE INDEX operations_by_end ON public.operations USING btree (finished_at);
CREATE INDEX operations_failed ON public.operations USING btree (organization_id, appointment_id) WHERE (write IS NOT NULL);
CREATE INDEX operations_refused ON public.operations USING btree (organization_id, operation_id) WHERE (revision IS NULL);
CREATE INDEX purged_organizations_by_time ON public.purged_organizations USING btree (purged_at);
CREATE INDEX queued_operations_by_sequence ON public.queued_operations USING btree (((sequence + 0)));
CREATE INDEX unchanged_writes_by_revision ON public.unchanged_writes USING btree (organization_id, abs(revision));
CREATE INDEX webhook_deliveries_by_time ON public.webhook_deliveries USING btree (attempted_at);
CREATE INDEX webhooks_due ON public.webhooks USING btree (next_attempt_at) WHERE ((NOT disabled) AND (attempts = 0));
CREATE INDEX webhooks_failing ON public.webhooks USING btree (next_attempt_at) WHERE ((NOT disabled) AND (attempts > 0));
GRANT USAGE ON SCHEMA own TO appointments_service;
GRANT USAGE ON SCHEMA own TO appointments_caller;
GRANT USAGE ON SCHEMA public TO appointments_service;
GRANT USAGE ON SCHEMA public TO appointments_caller;
GRANT SELECT ON TABLE public.appointments TO appointments_service;
GRANT SELECT ON TABLE public.appointment_history TO appointments_service;
GRANT SELECT ON TABLE own.appointment_history TO appointments_service;
GRANT SELECT ON TABLE own.appointment_history TO appointments_caller;
GRANT SELECT ON TABLE own.appointments TO appointments_service;
GRANT SELECT ON TABLE own.appointments TO appointments_caller;
GRANT SELECT,INSERT,UPDATE ON TABLE public.event_cursors TO appointments_service;
GRANT SELECT ON TABLE public.operation_leases TO appointments_service;
GRANT UPDATE(leased_until) ON TABLE public.operation_leases TO appointments_service;
GRANT UPDATE(attempts) ON TABLE public.operation_leases TO appointments_service;
GRANT SELECT,DELETE ON TABLE public.operations TO appointments_service;
GRANT SELECT ON TABLE own.operations TO appointments_service;
GRANT SELECT ON TABLE own.operations TO appointments_caller;
GRANT SELECT ON TABLE public.organizations TO appointments_service;
GRANT SELECT ON TABLE own.organizations TO appointments_service;
GRANT SELECT ON TABLE own.organizations TO appointments_caller;
GRANT SELECT,DELETE ON TABLE public.purged_organizations TO appointments_service;
GRANT SELECT,INSERT ON TABLE public.queued_operations TO appointments_service;
GRANT SELECT ON TABLE own.queued_operations TO appointments_service;
GRANT SELECT ON TABLE own.queued_operations TO appointments_caller;
GRANT SELECT ON TABLE public.unchanged_writes TO appointments_service;
GRANT SELECT,INSERT,DELETE ON TABLE public.webhook_deliveries TO appointments_service;
GRANT SELECT ON TABLE own.webhook_deliveries TO appointments_service;
GRANT SELECT ON TABLE own.webhook_deliveries TO appointments_caller;
GRANT DELETE ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(organization_id) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(webhook_id) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(url) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(description) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(changes) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(disabled),UPDATE(disabled) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(disabled_reason),UPDATE(disabled_reason) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(created_at) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(updated_at),UPDATE(updated_at) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(cursor_revision),UPDATE(cursor_revision) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(attempts),UPDATE(attempts) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(failing_since),UPDATE(failing_since) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(next_attempt_at),UPDATE(next_attempt_at) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(leased_until),UPDATE(leased_until) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(fence),UPDATE(fence) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(header_names) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(resource_id) ON TABLE public.webhooks TO appointments_service;
GRANT SELECT(organization_id) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(organization_id) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(webhook_id) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(webhook_id) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(url) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(url) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(description) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(description) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(changes) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(changes) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(disabled) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(disabled) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(disabled_reason) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(disabled_reason) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(created_at) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(created_at) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(updated_at) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(updated_at) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(cursor_revision) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(cursor_revision) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(attempts) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(attempts) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(failing_since) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(failing_since) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(next_attempt_at) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(next_attempt_at) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(leased_until) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(leased_until) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(fence) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(fence) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(header_names) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(header_names) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT(resource_id) ON TABLE own.webhooks TO appointments_service;
GRANT SELECT(resource_id) ON TABLE own.webhooks TO appointments_caller;
GRANT SELECT ON TABLE public.api_keys TO appointments_service;
GRANT SELECT ON TABLE public.api_keys TO appointments_caller;
GRANT SELECT ON TABLE public.epochs TO appointments_service;
GRANT SELECT ON TABLE public.epochs TO appointments_caller;
GRANT SELECT,INSERT,UPDATE ON TABLE public.event_publishers TO appointments_service;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.request_buckets TO appointments_service;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.request_buckets TO appointments_caller;
