-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- Statements for callers see the rows of one organization at a time, whatever they say
-- (docs/decisions/0022-organizations-are-views.md).

-- The role of these statements. It cannot log in. Like appointments_service, which is its member,
-- so that users who were granted that role need no other grant.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'appointments_caller') THEN
        CREATE ROLE appointments_caller NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

DO $$
BEGIN
    GRANT appointments_caller TO appointments_service;
    GRANT appointments_caller TO CURRENT_USER;
EXCEPTION WHEN insufficient_privilege THEN
    -- Another user created the role. The user of DATABASE_URL may already be a member.
    RAISE WARNING 'for the user of the service, an administrator must:'
        ' GRANT appointments_caller TO ...';
END
$$;

GRANT USAGE ON SCHEMA public TO appointments_caller;
GRANT SELECT ON schema_migrations, api_keys TO appointments_caller;

-- The views have the names of the tables. A view shows the rows of the organization that the
-- transaction is for, and no rows if it is for none. WITH CHECK OPTION refuses rows of another one.
-- The views are no security barriers, which would keep the conditions on ranges from using their
-- indexes.
CREATE SCHEMA own;
GRANT USAGE ON SCHEMA own TO appointments_service, appointments_caller;

CREATE VIEW own.organizations AS
SELECT * FROM public.organizations
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.appointments AS
SELECT * FROM public.appointments
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.appointment_history AS
SELECT * FROM public.appointment_history
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.unchanged_writes AS
SELECT * FROM public.unchanged_writes
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.queued_operations AS
SELECT * FROM public.queued_operations
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.operations AS
SELECT * FROM public.operations
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.operation_leases AS
SELECT * FROM public.operation_leases
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.webhooks AS
SELECT * FROM public.webhooks
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.webhook_deliveries AS
SELECT * FROM public.webhook_deliveries
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

CREATE VIEW own.event_cursors AS
SELECT * FROM public.event_cursors
WHERE organization_id = current_setting('appointments.organization', true)
WITH CHECK OPTION;

GRANT SELECT ON
own.organizations, own.appointments, own.appointment_history, own.queued_operations,
own.operations, own.webhook_deliveries
TO appointments_service, appointments_caller;
-- Not its secrets.
GRANT SELECT (
    organization_id, webhook_id, url, description, changes, resource_id, disabled,
    disabled_reason, created_at, updated_at, cursor_revision, attempts, failing_since,
    next_attempt_at, leased_until, fence, header_names
) ON own.webhooks TO appointments_service, appointments_caller;

-- Raise an error if the transaction is for another organization.
CREATE FUNCTION check_organization(p_organization_id text)
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) NOT IN ('', p_organization_id) THEN
        RAISE EXCEPTION 'a statement for the organization % names the organization %',
            current_setting('appointments.organization', true), p_organization_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION check_organization FROM PUBLIC;

-- Make the transaction one for an organization. Returns false if it was that before. Raises an
-- error if it is for another one.
CREATE FUNCTION enter_organization(p_organization_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) = p_organization_id THEN
        RETURN false;
    END IF;
    PERFORM check_organization(p_organization_id);
    PERFORM set_config('appointments.organization', p_organization_id, true);
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION enter_organization FROM PUBLIC;

-- Make the transaction one for no organization again, if enter_organization returned true.
CREATE FUNCTION leave_organization(p_entered boolean)
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF p_entered THEN
        PERFORM set_config('appointments.organization', '', true);
    END IF;
END
$$;

REVOKE ALL ON FUNCTION leave_organization FROM PUBLIC;

-- Raise an error if the transaction is for one organization. The calling function is for several.
CREATE FUNCTION require_no_organization()
RETURNS void
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
    IF current_setting('appointments.organization', true) <> '' THEN
        RAISE EXCEPTION 'a statement for the organization % calls a function for several',
            current_setting('appointments.organization', true)
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

REVOKE ALL ON FUNCTION require_no_organization FROM PUBLIC;
GRANT EXECUTE ON FUNCTION require_no_organization TO appointments_service, appointments_caller;

-- Return the key of an organization's advisory lock, which every write holds. The seed
-- separates these keys from other uses of 64-bit advisory locks. It has no SET clause, which
-- would prevent inlining.
CREATE OR REPLACE FUNCTION organization_lock_key(p_organization_id text)
RETURNS bigint
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN hashtextextended(p_organization_id, 7236001);

REVOKE ALL ON FUNCTION organization_lock_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION organization_lock_key TO appointments_service, appointments_caller;

-- Return the conflicts of a single write of apply_writes that the exclusion constraint refused,
-- as conflicting_appointments does. An update leaves the fields that it does not name as stored.
CREATE OR REPLACE FUNCTION conflicts_of_write(p_organization_id text, p_write json)
RETURNS json
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_conflicts json;
BEGIN
    v_conflicts := (
        SELECT conflicting_appointments(
            p_organization_id,
            array_prepend(
                CASE WHEN 'resource_id' <> ALL (named.fields) THEN a.resource_id ELSE w.resource_id END,
                CASE WHEN 'additional_resource_ids' <> ALL (named.fields)
                    THEN a.additional_resource_ids ELSE w.additional_resource_ids END
            ),
            ARRAY[w.id],
            CASE WHEN 'start' <> ALL (named.fields) THEN a.start_time ELSE w.start_time END,
            CASE WHEN 'end' <> ALL (named.fields) THEN a.end_time ELSE w.end_time END,
            clock_timestamp()
        )
        FROM json_to_record(p_write) AS w (
            id text,
            resource_id text,
            additional_resource_ids text [],
            start_time timestamptz,
            end_time timestamptz,
            fields text []
        )
        LEFT JOIN appointments a
            ON a.organization_id = p_organization_id AND a.appointment_id = w.id AND a.ordinal = 0
        -- An update that creates has all fields.
        CROSS JOIN LATERAL (
            SELECT CASE WHEN a.appointment_id IS NOT NULL THEN w.fields END AS fields
        ) AS named
    );
    PERFORM leave_organization(v_entered);
    RETURN v_conflicts;
END
$$;

REVOKE ALL ON FUNCTION conflicts_of_write FROM PUBLIC;
GRANT EXECUTE ON FUNCTION conflicts_of_write TO appointments_service, appointments_caller;

-- Apply a batch of writes of one organization, in order, and return one row for each write.
-- Each write sees those before it. There is no other way to change an appointment.
--
-- The function first takes the organization's advisory lock, which is held to the end of the
-- transaction. Every later statement has a new snapshot, so it sees everything that earlier
-- holders committed. This is true in READ COMMITTED only: other isolation levels are refused.
--
-- writes: a JSON array of objects with the columns of the record below. The caller has
-- validated the fields. kind: UPSERT, UPDATE (changes only the columns that fields names, and
-- merges attributes_patch), CONFIRM, CANCEL, or EXPIRE (records that a hold has expired). An
-- expected_revision of 0 means any stored revision; a negative one is that of an appointment that
-- has expired. max_hold is in seconds. The updated_at of a cancel is stored as
-- cancel_updated_at.
--
-- outcome: the effect of the write (CREATED, UPDATED, UNCHANGED, STALE, CONFIRMED, EXPIRED,
-- CANCELLED), or the reason of its refusal (APPOINTMENT_NOT_FOUND, APPOINTMENT_EXISTS,
-- ETAG_MISMATCH, IDEMPOTENCY_KEY_REUSED, APPOINTMENT_CANCELLED, HOLD_EXPIRED, APPOINTMENT_FIRM,
-- TIME_RANGE_CONFLICT; invalid by the time of the database: HOLD_UNTIL_INVALID; invalid together
-- with what is stored: RANGE_INVALID, RESOURCES_INVALID, ATTRIBUTES_INVALID). conflicts: for
-- TIME_RANGE_CONFLICT, a JSON array of at most 21. alternatives: the free ranges that suggest
-- asks for. appointment: the stored row after a write that was not refused. A write that
-- repeats an earlier one with the same idempotency key gets the earlier outcome and
-- appointment; columns that the history does not have are NULL then.
--
-- A hold occupies its range until hold_until, compared with the database's clock under the lock.
-- From then on it counts as EXPIRED. The row says so only after a change of its own, which is
-- recorded before the change of the write that needs the place or the id.
--
-- If the function does not see an overlap (with hand-written SQL in an open transaction), the
-- whole call fails with the exclusion constraint's error. Without p_check_overlap, only the
-- constraint refuses overlaps.
CREATE OR REPLACE FUNCTION apply_writes(
    p_organization_id text, p_writes json, p_check_overlap boolean DEFAULT true
)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    -- RETURN NEXT returns them.
    v_outcome ALIAS FOR outcome;
    v_revision ALIAS FOR organization_revision;
    stored ALIAS FOR appointment;
    v_recorded_at timestamptz;
    v_first_revision bigint;
    v_exists boolean;
    -- Whether the appointment occupies several resources, before or after the write.
    v_several boolean;
    -- Whether there is a change with a revision of its own, and whether anything else is stored.
    v_changed boolean;
    v_noted boolean;
    v_placed boolean;
    -- The resources that the write leaves.
    v_released text [];
    -- The holds that have expired and that the write needs to be recorded as such.
    v_due text [];
    -- A resource, and the end of the time in which it is searched for appointments.
    v_resource_id text;
    v_before timestamptz;
    w record;
    neighbour record;
    keyed appointment_history%ROWTYPE;
    unchanged unchanged_writes%ROWTYPE;
    -- The latest updated_at that callers sent for the stored appointment, including that of a
    -- cancel; NULL if they sent none. A write with an older one is stale.
    v_guard timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    PERFORM check_organization(p_organization_id);
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT o.revision, greatest(o.recorded_at, clock_timestamp())
    INTO v_revision, v_recorded_at
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    IF NOT FOUND THEN
        v_revision := 0;
        v_recorded_at := clock_timestamp();
    END IF;
    v_first_revision := v_revision;

    <<each_write>>
    FOR w IN
        SELECT *
        FROM json_to_recordset(p_writes) AS r (
            kind text,
            id text,
            resource_id text,
            additional_resource_ids text [],
            start_time timestamptz,
            end_time timestamptz,
            title text,
            attributes json,
            created_at timestamptz,
            updated_at timestamptz,
            hold_until timestamptz,
            max_hold double precision,
            fields text [],
            attributes_patch json,
            allow_missing boolean,
            expected_revision bigint,
            create_only boolean,
            idempotency_key text,
            idempotency_digest text,
            actor text,
            validate_only boolean,
            suggest integer
        )
    LOOP
        v_outcome := NULL;
        v_due := NULL;
        v_released := NULL;
        v_changed := false;
        v_noted := false;
        v_placed := false;

        IF w.idempotency_key IS NOT NULL THEN
            SELECT h.* INTO keyed
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.idempotency_key = w.idempotency_key;
            IF NOT FOUND THEN
                SELECT u.* INTO unchanged
                FROM unchanged_writes u
                WHERE u.organization_id = p_organization_id AND u.idempotency_key = w.idempotency_key;
                IF FOUND THEN
                    SELECT h.* INTO keyed
                    FROM appointment_history h
                    WHERE h.organization_id = p_organization_id
                        AND h.revision BETWEEN abs(unchanged.revision) AND abs(unchanged.revision)
                    ORDER BY h.revision;
                    IF unchanged.revision < 0 THEN
                        keyed.state := 'EXPIRED';
                    END IF;
                    keyed.change := unchanged.outcome;
                    keyed.idempotency_digest := unchanged.idempotency_digest;
                END IF;
            END IF;
            IF FOUND THEN
                IF keyed.idempotency_digest = decode(w.idempotency_digest, 'hex') THEN
                    -- Copies columns by name. It is slow, but such retries are rare.
                    stored := json_populate_record(NULL::appointments, row_to_json(keyed));
                    v_outcome := keyed.change;
                    RETURN NEXT;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            END IF;
        END IF;

        -- The order makes the planner use the primary key. With an equality, another index can
        -- have the same estimated cost. The first row is that of ordinal 0. A condition on it
        -- would make PostgreSQL prepare a skip scan.
        SELECT a.* INTO stored
        FROM appointments a
        WHERE a.organization_id = p_organization_id AND a.appointment_id BETWEEN w.id AND w.id
        ORDER BY a.appointment_id, a.ordinal;
        v_exists := FOUND;
        v_several := coalesce(stored.additional_resource_ids, w.additional_resource_ids) IS NOT NULL;
        IF stored.hold_until <= v_recorded_at AND stored.state = 'HELD' THEN
            stored.state := 'EXPIRED';
            v_due := ARRAY[w.id];
        END IF;

        -- Most writes have no conditions.
        IF v_outcome IS NULL AND (
            w.expected_revision IS NOT NULL
            OR w.create_only
            OR w.updated_at IS NOT NULL
            OR w.hold_until IS NOT NULL
            OR w.kind <> 'UPSERT' AND (w.kind = 'UPDATE' OR NOT v_exists)
        ) THEN
            IF w.attributes_patch IS NOT NULL THEN
                w.attributes := merge_json(
                    CASE WHEN v_exists THEN stored.attributes ELSE w.attributes END,
                    w.attributes_patch
                );
            END IF;
            IF v_exists OR w.allow_missing IS NOT TRUE THEN
                -- Times that an update does not name are not given, unless it creates.
                IF 'created_at' <> ALL (w.fields) THEN
                    w.created_at := NULL;
                END IF;
                IF 'updated_at' <> ALL (w.fields) THEN
                    w.updated_at := NULL;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := NULL;
                END IF;
            END IF;
            v_guard := coalesce(
                stored.cancel_updated_at, CASE WHEN stored.updated_at_given THEN stored.updated_at END
            );
            IF w.hold_until <= v_recorded_at
                OR w.hold_until > v_recorded_at + make_interval(secs => w.max_hold) THEN
                v_outcome := 'HOLD_UNTIL_INVALID';
            ELSIF NOT v_exists AND w.kind <> 'UPSERT' AND w.allow_missing IS NOT TRUE THEN
                v_outcome := 'APPOINTMENT_NOT_FOUND';
            ELSIF w.expected_revision IS NOT NULL AND (
                NOT v_exists
                OR w.expected_revision NOT IN (
                    0, CASE stored.state WHEN 'EXPIRED' THEN -stored.revision ELSE stored.revision END
                )
            ) THEN
                v_outcome := 'ETAG_MISMATCH';
            ELSIF w.create_only AND v_exists THEN
                v_outcome := 'APPOINTMENT_EXISTS';
            ELSIF w.updated_at < v_guard
                OR w.updated_at = v_guard AND stored.state = 'CANCELLED' AND w.kind <> 'CANCEL' THEN
                v_outcome := 'STALE';
            END IF;
        END IF;

        IF w.kind = 'UPSERT' OR v_outcome IS NOT NULL THEN
            NULL;
        ELSIF w.kind = 'CANCEL' THEN
            IF stored.state = 'CANCELLED' THEN
                v_outcome := 'UNCHANGED';
                -- Nothing visible changes, but updates older than this cancel are stale now.
                IF coalesce(w.updated_at > v_guard, w.updated_at IS NOT NULL) THEN
                    stored.cancel_updated_at := w.updated_at;
                    v_noted := NOT w.validate_only;
                END IF;
            END IF;
        ELSIF w.kind = 'EXPIRE' THEN
            IF v_due IS NULL THEN
                v_outcome := 'UNCHANGED';
            END IF;
        ELSE
            IF NOT v_exists THEN
                NULL;  -- It is created.
            ELSIF stored.state = 'CANCELLED' THEN
                v_outcome := 'APPOINTMENT_CANCELLED';
            ELSIF stored.state = 'EXPIRED' THEN
                v_outcome := 'HOLD_EXPIRED';
            ELSIF w.kind = 'CONFIRM' THEN
                IF stored.state = 'ACTIVE' THEN
                    v_outcome := 'UNCHANGED';
                END IF;
            ELSE
                IF 'resource_id' <> ALL (w.fields) THEN
                    w.resource_id := stored.resource_id;
                END IF;
                IF 'additional_resource_ids' <> ALL (w.fields) THEN
                    w.additional_resource_ids := stored.additional_resource_ids;
                END IF;
                IF 'start' <> ALL (w.fields) THEN
                    w.start_time := stored.start_time;
                END IF;
                IF 'end' <> ALL (w.fields) THEN
                    w.end_time := stored.end_time;
                END IF;
                IF 'title' <> ALL (w.fields) THEN
                    w.title := stored.title;
                END IF;
                IF 'attributes' <> ALL (w.fields) AND w.attributes_patch IS NULL THEN
                    w.attributes := stored.attributes;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := stored.hold_until;
                END IF;
                -- A time of the service's own becomes that of this change.
                IF 'updated_at' <> ALL (w.fields) AND stored.updated_at_given THEN
                    w.updated_at := stored.updated_at;
                END IF;
                -- The rules of service/rules.py that concern fields that the update does not name.
                IF w.start_time >= w.end_time OR w.end_time - w.start_time > '3653 days' THEN
                    v_outcome := 'RANGE_INVALID';
                ELSIF w.resource_id = ANY (w.additional_resource_ids) THEN
                    v_outcome := 'RESOURCES_INVALID';
                ELSIF octet_length(w.attributes::text) > 16384 THEN
                    v_outcome := 'ATTRIBUTES_INVALID';
                END IF;
            END IF;
        END IF;

        IF v_outcome IS NULL AND w.kind IN ('UPSERT', 'UPDATE') THEN
            IF NOT v_exists THEN
                NULL;
            ELSIF stored.state IN ('ACTIVE', 'HELD')
                AND stored.resource_id = w.resource_id
                AND stored.start_time = w.start_time
                AND stored.end_time = w.end_time
                AND stored.title = w.title
                AND stored.attributes::text = w.attributes::text
                AND stored.hold_until IS NOT DISTINCT FROM w.hold_until
                AND stored.additional_resource_ids IS NOT DISTINCT FROM w.additional_resource_ids
                AND (w.created_at IS NULL OR w.created_at = stored.created_at)
                AND (w.updated_at IS NULL OR w.updated_at = stored.updated_at) THEN
                v_outcome := 'UNCHANGED';
            ELSIF w.hold_until IS NOT NULL AND stored.state = 'ACTIVE' THEN
                v_outcome := 'APPOINTMENT_FIRM';
            END IF;
            IF v_outcome IS NULL AND p_check_overlap THEN
                v_resource_id := w.resource_id;
                v_before := w.end_time;
                LOOP
                    -- Ranges of a resource never overlap, so of those that start before the new
                    -- end only the last one can overlap the new range. With the row comparison
                    -- only one index has this order. The row found may belong to another
                    -- resource.
                    SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.hold_until
                    INTO neighbour
                    FROM appointments a
                    WHERE a.organization_id = p_organization_id
                        AND (a.resource_id, a.start_time) < (v_resource_id, v_before)
                        AND a.state IN ('ACTIVE', 'HELD')
                        AND a.appointment_id <> w.id
                    ORDER BY a.resource_id DESC, a.start_time DESC
                    LIMIT 1;
                    IF neighbour.resource_id = v_resource_id
                        AND neighbour.end_time > w.start_time THEN
                        IF neighbour.hold_until <= v_recorded_at THEN
                            v_due := array_append(v_due, neighbour.appointment_id);
                            v_before := neighbour.start_time;
                        ELSE
                            v_outcome := 'TIME_RANGE_CONFLICT';
                            conflicts := conflicting_appointments(
                                p_organization_id,
                                array_prepend(w.resource_id, w.additional_resource_ids),
                                ARRAY[w.id], w.start_time, w.end_time, v_recorded_at
                            );
                            IF w.suggest > 0 THEN
                                alternatives := alternative_ranges(
                                    p_organization_id,
                                    array_prepend(w.resource_id, w.additional_resource_ids),
                                    w.id, w.start_time, w.end_time, v_recorded_at, w.suggest
                                );
                            END IF;
                            RETURN NEXT;
                            conflicts := NULL;
                            alternatives := NULL;
                            CONTINUE each_write;
                        END IF;
                    ELSE
                        EXIT WHEN w.additional_resource_ids IS NULL;
                        -- The next resource. They are distinct.
                        v_resource_id := w.additional_resource_ids[
                            coalesce(array_position(w.additional_resource_ids, v_resource_id), 0) + 1
                        ];
                        EXIT WHEN v_resource_id IS NULL;
                        v_before := w.end_time;
                    END IF;
                END LOOP;
            END IF;
        END IF;

        IF v_outcome IS NULL THEN
            IF v_due IS NOT NULL AND w.kind <> 'EXPIRE' THEN
                IF w.id = ANY (v_due) THEN
                    stored.version := stored.version + 1;
                END IF;
                IF NOT w.validate_only THEN
                    -- This function reads the revision and the earliest time from the table, and
                    -- stores the new ones there.
                    UPDATE organizations o
                    SET revision = v_revision, recorded_at = v_recorded_at
                    WHERE o.organization_id = p_organization_id;
                    PERFORM apply_writes(
                        p_organization_id,
                        (
                            SELECT json_agg(json_build_object(
                                'kind', 'EXPIRE', 'id', due.id, 'actor', '', 'validate_only', false
                            ) ORDER BY due.id COLLATE "C")
                            FROM (SELECT DISTINCT unnest(v_due) AS id) AS due
                        )
                    );
                    SELECT o.revision, o.recorded_at INTO v_revision, v_recorded_at
                    FROM organizations o
                    WHERE o.organization_id = p_organization_id;
                END IF;
            END IF;

            IF w.kind IN ('UPSERT', 'UPDATE') THEN
                v_outcome := CASE WHEN v_exists THEN 'UPDATED' ELSE 'CREATED' END;
                v_placed := NOT v_exists
                    OR stored.start_time <> w.start_time
                    OR stored.end_time <> w.end_time
                    OR stored.resource_id <> w.resource_id
                    OR stored.additional_resource_ids IS DISTINCT FROM w.additional_resource_ids;
                IF v_several OR stored.resource_id <> w.resource_id THEN
                    SELECT array_agg(before.resource_id ORDER BY before.resource_id)
                    INTO v_released
                    FROM unnest(array_prepend(stored.resource_id, stored.additional_resource_ids))
                        AS before (resource_id)
                    WHERE before.resource_id <> w.resource_id
                        AND (before.resource_id = ANY (w.additional_resource_ids)) IS NOT TRUE;
                END IF;
                -- In the order of the table's columns. One assignment is cheaper than many.
                stored := ROW(
                    p_organization_id, w.id, w.resource_id, w.start_time, w.end_time, w.title,
                    w.attributes, coalesce(w.created_at, stored.created_at, v_recorded_at),
                    coalesce(w.updated_at, v_recorded_at), w.updated_at IS NOT NULL,
                    CASE WHEN w.hold_until IS NULL THEN 'ACTIVE' ELSE 'HELD' END,
                    coalesce(stored.version, 0) + 1, v_revision + 1, NULL::timestamptz,
                    0::smallint, w.additional_resource_ids, w.hold_until
                );
            ELSE
                IF w.kind = 'CANCEL' THEN
                    v_outcome := 'CANCELLED';
                    stored.state := 'CANCELLED';
                    stored.cancel_updated_at := w.updated_at;
                ELSIF w.kind = 'CONFIRM' THEN
                    v_outcome := 'CONFIRMED';
                    stored.state := 'ACTIVE';
                    stored.hold_until := NULL;
                ELSE
                    v_outcome := 'EXPIRED';
                END IF;
                stored.version := stored.version + 1;
                stored.revision := v_revision + 1;
            END IF;
            -- A validated write that is not stored has no revision, and therefore no etag.
            IF w.validate_only THEN
                stored.revision := 0;
            ELSE
                v_revision := stored.revision;
                v_changed := true;
            END IF;
        END IF;

        IF v_changed OR v_noted THEN
            IF v_several THEN
                -- Its rows are replaced, since a new one can be in the place of another old one.
                DELETE FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN w.id AND w.id;
                INSERT INTO appointments (
                    organization_id, appointment_id, ordinal, resource_id, start_time, end_time,
                    title, attributes, created_at, updated_at, updated_at_given, hold_until, state,
                    version, revision
                )
                SELECT
                    p_organization_id, w.id, more.ordinal, more.resource_id,
                    stored.start_time, stored.end_time, '', '{}', stored.created_at,
                    stored.updated_at, false, stored.hold_until, stored.state,
                    stored.version, stored.revision
                FROM unnest(stored.additional_resource_ids)
                    WITH ORDINALITY AS more (resource_id, ordinal);
            END IF;
            -- ON CONFLICT always uses the primary key.
            INSERT INTO appointments (
                organization_id, appointment_id, ordinal, resource_id, additional_resource_ids,
                start_time, end_time, title, attributes, created_at, updated_at,
                updated_at_given, cancel_updated_at, hold_until, state, version, revision
            ) VALUES (
                p_organization_id, w.id, 0, stored.resource_id, stored.additional_resource_ids,
                stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.updated_at_given,
                stored.cancel_updated_at, stored.hold_until,
                stored.state, stored.version, stored.revision
            )
            ON CONFLICT (organization_id, appointment_id, ordinal) DO UPDATE
            SET resource_id = excluded.resource_id,
                additional_resource_ids = excluded.additional_resource_ids,
                start_time = excluded.start_time,
                end_time = excluded.end_time,
                title = excluded.title,
                attributes = excluded.attributes,
                created_at = excluded.created_at,
                updated_at = excluded.updated_at,
                updated_at_given = excluded.updated_at_given,
                cancel_updated_at = excluded.cancel_updated_at,
                hold_until = excluded.hold_until,
                state = excluded.state,
                version = excluded.version,
                revision = excluded.revision;
        END IF;
        IF v_changed THEN
            INSERT INTO appointment_history (
                organization_id, revision, change, recorded_at, actor,
                idempotency_key, idempotency_digest,
                appointment_id, resource_id, additional_resource_ids, released_resource_ids,
                start_time, end_time, title, attributes,
                created_at, updated_at, hold_until, state, version, placed
            ) VALUES (
                p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                w.idempotency_key,
                CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                stored.appointment_id, stored.resource_id, stored.additional_resource_ids,
                v_released, stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.hold_until, stored.state, stored.version,
                v_placed
            );
        ELSIF w.idempotency_key IS NOT NULL AND v_outcome IN ('UNCHANGED', 'STALE')
            AND NOT w.validate_only THEN
            INSERT INTO unchanged_writes (
                organization_id, idempotency_key, idempotency_digest, outcome, revision
            ) VALUES (
                p_organization_id, w.idempotency_key, decode(w.idempotency_digest, 'hex'),
                v_outcome, CASE WHEN v_due IS NULL THEN stored.revision ELSE -stored.revision END
            );
        END IF;

        RETURN NEXT;
    END LOOP;

    IF v_revision > v_first_revision THEN
        INSERT INTO organizations (organization_id, revision, recorded_at)
        VALUES (p_organization_id, v_revision, v_recorded_at)
        ON CONFLICT (organization_id) DO UPDATE
        SET revision = excluded.revision, recorded_at = excluded.recorded_at;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION apply_writes FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_writes TO appointments_service, appointments_caller;

-- Apply a batch of writes of one organization by apply_writes, all or none. Overlaps are judged
-- on the final state: two appointments may swap places. No id may be given twice.
--
-- The rows are those of apply_writes. If any write is refused, nothing is written, no revision is
-- used, and the outcome of every other write is NOT_WRITTEN. At most 64 writes get the outcome
-- TIME_RANGE_CONFLICT, which are more than fit in an error. A conflict with another write of the
-- batch has its index, from 0. With p_validate_only nothing is written either.
CREATE OR REPLACE FUNCTION apply_atomically(p_organization_id text, p_writes json, p_validate_only boolean)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    c_not_refused constant text [] := '{CREATED,UPDATED,CONFIRMED,CANCELLED,UNCHANGED,STALE}';
    v_lock_wait double precision;
    v_now timestamptz;
    v_first_revision bigint;
    v_revision bigint;
    v_ids text [];
    v_outcomes text [];
    v_conflicts json [];
    v_appointments appointments [];
    v_refused boolean;
    v_overlap boolean := false;
    v_taken appointments [];
    n integer;
    found_conflicts record;
BEGIN
    PERFORM check_organization(p_organization_id);
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    v_lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT coalesce(max(o.revision), 0), greatest(max(o.recorded_at), clock_timestamp())
    INTO v_first_revision, v_now
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    v_ids := ARRAY(
        SELECT w.value ->> 'id'
        FROM json_array_elements(p_writes) WITH ORDINALITY AS w (value, place)
        ORDER BY w.place
    );

    BEGIN
        -- Holds that have expired and are in the way are recorded first. The others would only
        -- make the transaction longer. Those of the batch itself are recorded by its writes, which
        -- are judged by the etag from before. Ranges of a resource do not overlap, so of the holds
        -- that start before a range only the last one can overlap it.
        PERFORM apply_writes(p_organization_id, due.writes)
        FROM (
            SELECT json_agg(json_build_object(
                'kind', 'EXPIRE', 'id', held.appointment_id, 'actor', '', 'validate_only', false
            ) ORDER BY held.appointment_id) AS writes
            FROM (
                SELECT DISTINCT candidate.appointment_id
                FROM json_to_recordset(p_writes) AS w (
                    resource_id text, additional_resource_ids text [],
                    start_time timestamptz, end_time timestamptz
                )
                CROSS JOIN unnest(array_prepend(w.resource_id, w.additional_resource_ids))
                    AS wanted (resource_id)
                CROSS JOIN LATERAL (
                    (
                        SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                        FROM appointments a
                        WHERE a.organization_id = p_organization_id
                            AND (a.resource_id, a.start_time) < (wanted.resource_id, w.start_time)
                            AND a.state IN ('ACTIVE', 'HELD')
                        ORDER BY a.resource_id DESC, a.start_time DESC
                        LIMIT 1
                    )
                    UNION ALL
                    (
                        SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                        FROM appointments a
                        WHERE a.organization_id = p_organization_id
                            AND a.resource_id = wanted.resource_id
                            AND a.state IN ('ACTIVE', 'HELD')
                            AND a.start_time >= w.start_time
                            AND a.start_time < w.end_time
                        ORDER BY a.start_time
                    )
                ) AS candidate
                WHERE candidate.resource_id = wanted.resource_id
                    AND candidate.end_time > w.start_time
                    AND candidate.hold_until <= v_now
                    AND candidate.appointment_id <> ALL (v_ids)
            ) AS held
        ) AS due
        WHERE due.writes IS NOT NULL;

        -- The exclusion constraint. It is the only deferrable one.
        SET CONSTRAINTS ALL DEFERRED;
        SELECT
            array_agg(r.outcome ORDER BY r.ordinality),
            array_agg(r.conflicts ORDER BY r.ordinality),
            array_agg(r.appointment ORDER BY r.ordinality)
        INTO v_outcomes, v_conflicts, v_appointments
        FROM apply_writes(p_organization_id, p_writes, false) WITH ORDINALITY AS r;
        -- A write that is stale has recorded nothing, but another one may take its place.
        PERFORM apply_writes(p_organization_id, due.writes)
        FROM (
            SELECT json_agg(json_build_object(
                'kind', 'EXPIRE', 'id', a.appointment_id, 'actor', '', 'validate_only', false
            ) ORDER BY a.appointment_id) AS writes
            FROM unnest(v_ids) AS item (id)
            JOIN appointments a
                ON a.organization_id = p_organization_id
                    AND a.appointment_id = item.id
                    AND a.ordinal = 0
            WHERE a.state = 'HELD' AND a.hold_until <= v_now
        ) AS due
        WHERE due.writes IS NOT NULL;
        SELECT coalesce(max(o.revision), 0) INTO v_revision
        FROM organizations o
        WHERE o.organization_id = p_organization_id;
        BEGIN
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN exclusion_violation THEN
            v_overlap := true;
        END;

        IF v_overlap THEN
            -- The rows that the batch would occupy. A condition on the state would let the planner
            -- read all rows of the organization for each item.
            SELECT array_agg(taken.a) INTO v_taken
            FROM unnest(v_ids, v_outcomes) AS item (id, outcome)
            CROSS JOIN LATERAL (
                SELECT a
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN item.id AND item.id
                ORDER BY a.appointment_id, a.ordinal
                OFFSET 0
            ) AS taken
            WHERE item.outcome = ANY (c_not_refused) AND (taken.a).state IN ('ACTIVE', 'HELD');
        END IF;

        v_refused := v_overlap OR NOT v_outcomes <@ c_not_refused;
        IF v_refused OR p_validate_only THEN
            RAISE EXCEPTION 'nothing is written' USING ERRCODE = 'AP001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'AP001' THEN
        v_revision := v_first_revision;
    END;

    IF v_overlap THEN
        -- The batch is undone, so ranges of a resource do not overlap.
        FOR found_conflicts IN
        WITH taken AS MATERIALIZED (
            SELECT array_position(v_ids, a.appointment_id) AS place, a.*
            FROM unnest(v_taken) AS a
        ),
        -- The items that the batch has moved, and whether others of the batch overlap them.
        -- Writes that changed nothing are in their place rightly.
        mine AS (
            SELECT
                t.place, t.start_time, t.end_time,
                array_agg(t.resource_id ORDER BY t.ordinal) AS resource_ids,
                bool_or(
                    coalesce(t.start_time < t.latest_end, false)
                    OR coalesce(t.end_time > t.next_start, false)
                ) AS crowded
            FROM (
                SELECT
                    taken.*,
                    max(taken.end_time) OVER (
                        by_start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    ) AS latest_end,
                    lead(taken.start_time) OVER by_start AS next_start
                FROM taken
                WINDOW by_start AS (
                    PARTITION BY taken.resource_id ORDER BY taken.start_time, taken.place
                )
            ) AS t
            WHERE t.revision > v_first_revision
            GROUP BY t.place, t.start_time, t.end_time
            ORDER BY t.place
        ),
        -- More than fit in an error.
        at_fault AS MATERIALIZED (
            SELECT mine.*, outside.conflicts
            FROM mine
            CROSS JOIN LATERAL (
                SELECT conflicting_appointments(
                    p_organization_id, mine.resource_ids, v_ids,
                    mine.start_time, mine.end_time, v_now
                ) AS conflicts
                OFFSET 0
            ) AS outside
            WHERE mine.crowded OR outside.conflicts IS NOT NULL
            ORDER BY mine.place
            LIMIT 64
        ),
        conflict AS (
            SELECT
                at_fault.place, other.appointment_id AS id, other.start_time, other.end_time,
                other.version, other.place - 1 AS index,
                array_agg(shared.resource_id ORDER BY shared.place) AS resource_ids
            FROM at_fault
            CROSS JOIN unnest(at_fault.resource_ids)
                WITH ORDINALITY AS shared (resource_id, place)
            JOIN taken other ON other.resource_id = shared.resource_id
            WHERE at_fault.crowded
                AND other.place <> at_fault.place
                AND other.start_time < at_fault.end_time
                AND at_fault.start_time < other.end_time
            GROUP BY
                at_fault.place, other.appointment_id, other.start_time, other.end_time,
                other.version, other.place
            UNION ALL
            SELECT
                at_fault.place, other.id, other.start, other.end,
                other.version, NULL, other.resource_ids
            FROM at_fault
            CROSS JOIN LATERAL json_to_recordset(at_fault.conflicts) AS other (
                id text, start timestamptz, "end" timestamptz, version integer,
                resource_ids text []
            )
        ),
        numbered AS (
            SELECT
                c.*,
                row_number() OVER (PARTITION BY c.place ORDER BY c.start_time, c.id) AS number
            FROM conflict c
        )
        SELECT
            c.place,
            json_agg(
                json_build_object(
                    'id', c.id, 'start', c.start_time, 'end', c.end_time,
                    'version', c.version, 'resource_ids', c.resource_ids, 'index', c.index
                ) ORDER BY c.number
            ) AS conflicts
        FROM numbered c
        WHERE c.number <= 21
        GROUP BY c.place
        LOOP
            v_outcomes[found_conflicts.place] := 'TIME_RANGE_CONFLICT';
            v_conflicts[found_conflicts.place] := found_conflicts.conflicts;
        END LOOP;
        IF v_outcomes <@ c_not_refused THEN
            RAISE EXCEPTION 'the writes overlap, but no conflict was found'
            USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'appointments_no_overlap';
        END IF;
    END IF;

    FOR n IN 1 .. cardinality(v_outcomes) LOOP
        IF v_refused AND v_outcomes[n] = ANY (c_not_refused) THEN
            v_outcomes[n] := 'NOT_WRITTEN';
        ELSIF (v_appointments[n]).revision > v_revision THEN
            v_appointments[n].revision := 0;
        END IF;
        RETURN QUERY
        SELECT
            v_outcomes[n], v_revision, v_lock_wait, v_conflicts[n], NULL::json, v_appointments[n];
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_atomically FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_atomically TO appointments_service, appointments_caller;

-- Apply the batches of several organizations by apply_writes, in one transaction, so that they
-- share a round trip and a commit.
--
-- batches: a JSON array of {"organization_id", "writes"}, each organization once. The rows
-- are those of apply_writes, one for each write, in the order of the batches.
--
-- It does not wait for an organization's lock that another session holds: that batch is
-- skipped, with one row whose outcome is BUSY. Any other lock wait (for rows locked by
-- hand-written SQL) fails the whole call after 50 ms with lock_not_available; the caller then
-- applies the batches one by one.
CREATE OR REPLACE FUNCTION apply_batches(p_batches json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    conflicts json,
    alternatives json,
    appointment appointments
)
LANGUAGE plpgsql
VOLATILE
SET search_path = public, pg_temp
SET plan_cache_mode = force_generic_plan
SET lock_timeout = '50ms'
AS $$
#variable_conflict use_column
DECLARE
    batch record;
BEGIN
    PERFORM require_no_organization();
    FOR batch IN
        SELECT * FROM json_to_recordset(p_batches) AS r (organization_id text, writes json)
    LOOP
        -- apply_writes takes the same lock again, which the transaction already holds.
        IF pg_try_advisory_xact_lock(organization_lock_key(batch.organization_id)) THEN
            RETURN QUERY SELECT * FROM apply_writes(batch.organization_id, batch.writes);
        ELSE
            outcome := 'BUSY';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_batches FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_batches TO appointments_service, appointments_caller;

-- Return the latest revision of an organization that was recorded at or before a time; 0 if
-- there is none. recorded_at never decreases as the revision grows, so a binary search on the
-- primary key finds it, without another index that every write would have to maintain.
CREATE OR REPLACE FUNCTION revision_at(p_organization_id text, p_time timestamptz)
RETURNS bigint
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    low bigint := 0;
    high bigint;
    middle bigint;
BEGIN
    SELECT o.revision INTO high
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    high := coalesce(high, 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        -- The order makes the planner use the primary key, as in apply_writes.
        IF (
            SELECT h.recorded_at <= p_time
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.revision BETWEEN middle AND middle
            ORDER BY h.revision
        ) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    PERFORM leave_organization(v_entered);
    RETURN low;
END
$$;

REVOKE ALL ON FUNCTION revision_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revision_at TO appointments_service, appointments_caller;

-- Return the latest revisions of several organizations, with the times when they were recorded,
-- and the time of the state that is read now. Organizations without one are left out.
CREATE FUNCTION organization_moments(p_organization_ids text [])
RETURNS TABLE (
    organization_id text, revision bigint, recorded_at timestamptz, clock timestamptz
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT o.organization_id, o.revision, o.recorded_at, greatest(o.recorded_at, now())
    FROM organizations o
    WHERE o.organization_id = ANY (p_organization_ids);
END
$$;

REVOKE ALL ON FUNCTION organization_moments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION organization_moments TO appointments_service, appointments_caller;

-- Append operations to the queue, those of several organizations in one call.
--
-- operations: a JSON array of {"organization_id", "operation_id", "accepted_at", "write"}.
CREATE FUNCTION queue_operations(p_operations json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM require_no_organization();
    INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)
    SELECT r.organization_id, r.operation_id, r.accepted_at, r.write
    FROM json_to_recordset(p_operations)
        AS r (organization_id text, operation_id uuid, accepted_at timestamptz, write json);
END
$$;

REVOKE ALL ON FUNCTION queue_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION queue_operations TO appointments_service, appointments_caller;

-- Return which of the operations of several organizations are finished. Each is the pair of the
-- two arrays that has its place.
CREATE FUNCTION finished_operations(p_organization_ids text [], p_operation_ids uuid [])
RETURNS TABLE (organization_id text, operation_id uuid)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_no_organization();
    RETURN QUERY
    SELECT o.organization_id, o.operation_id
    FROM unnest(p_organization_ids, p_operation_ids) AS wanted (organization_id, operation_id)
    JOIN operations o
        ON o.organization_id = wanted.organization_id AND o.operation_id = wanted.operation_id;
END
$$;

REVOKE ALL ON FUNCTION finished_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION finished_operations TO appointments_service, appointments_caller;

-- Store that an operation cannot be applied: as FAILED with p_failure, or, if that is NULL, as
-- TIME_RANGE_CONFLICT with a row that apply_writes does not see (of hand-written SQL in an open
-- transaction).
CREATE OR REPLACE FUNCTION refuse_operation(
    p_organization_id text,
    p_operation_id uuid,
    p_accepted_at timestamptz,
    p_write json,
    p_failure text
)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
BEGIN
    INSERT INTO operations (
        organization_id, operation_id, accepted_at, finished_at, appointment_id,
        outcome, organization_revision, conflicts, failure, write
    )
    SELECT
        p_organization_id, p_operation_id, p_accepted_at, clock_timestamp(),
        coalesce(p_write ->> 'id', ''),
        CASE WHEN p_failure IS NULL THEN 'TIME_RANGE_CONFLICT' ELSE 'FAILED' END,
        coalesce(
            (SELECT o.revision FROM organizations o WHERE o.organization_id = p_organization_id), 0
        ),
        CASE WHEN p_failure IS NULL THEN conflicts_of_write(p_organization_id, p_write) END,
        p_failure,
        CASE WHEN p_failure IS NOT NULL THEN p_write END
    ON CONFLICT DO NOTHING;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION refuse_operation FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_operation TO appointments_service;

-- Apply operations of one organization by apply_writes, in order, and store their results in
-- the same transaction. Finished operations are skipped, so operations may be passed again.
--
-- operations: a JSON array of {"operation_id", "accepted_at", "write"}.
--
-- If an operation causes an error, it is finished with that error and the others are applied.
-- Errors that no operation causes (locks, resources, missing privileges, a shutdown of the
-- server) fail the whole call, and nothing is written.
CREATE OR REPLACE FUNCTION apply_operations(p_organization_id text, p_operations json)
RETURNS void
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_ids uuid[];
    v_accepted timestamptz[];
    v_writes json[];
    v_appointment_ids text[];
    v_constraint text;
    n integer;
BEGIN
    -- Before the query for finished operations: another session may be applying the same ones.
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));

    SELECT
        array_agg(o.operation_id ORDER BY o.number),
        array_agg(o.accepted_at ORDER BY o.number),
        array_agg(o.write ORDER BY o.number),
        array_agg(o.write ->> 'id' ORDER BY o.number)
    INTO v_ids, v_accepted, v_writes, v_appointment_ids
    FROM (
        SELECT DISTINCT ON (given.operation_id) given.*
        FROM ROWS FROM (
            json_to_recordset(p_operations)
            AS (operation_id uuid, accepted_at timestamptz, write json)
        ) WITH ORDINALITY AS given (operation_id, accepted_at, write, number)
        ORDER BY given.operation_id, given.number
    ) AS o
    WHERE NOT EXISTS (
        SELECT FROM operations done
        WHERE done.organization_id = p_organization_id AND done.operation_id = o.operation_id
        -- Keeps it a look at the primary key for each operation. A join could read all of them.
        OFFSET 0
    );
    IF v_ids IS NULL THEN
        PERFORM leave_organization(v_entered);
        RETURN;
    END IF;

    BEGIN
        INSERT INTO operations (
            organization_id, operation_id, accepted_at, finished_at, appointment_id,
            outcome, organization_revision, revision, conflicts, alternatives
        )
        SELECT
            p_organization_id, v_ids[r.ordinality], v_accepted[r.ordinality], clock_timestamp(),
            v_appointment_ids[r.ordinality],
            r.outcome, r.organization_revision,
            CASE WHEN r.outcome IN (
                'CREATED', 'UPDATED', 'CONFIRMED', 'CANCELLED', 'UNCHANGED', 'STALE'
            ) THEN (r.appointment).revision
                * CASE (r.appointment).state WHEN 'EXPIRED' THEN -1 ELSE 1 END END,
            r.conflicts, r.alternatives
        FROM apply_writes(p_organization_id, array_to_json(v_writes)) WITH ORDINALITY AS r;
    EXCEPTION WHEN OTHERS THEN
        -- Not supported, transaction state and rollback, schema and privileges, resources,
        -- object in use, operator intervention, system, internal.
        IF left(SQLSTATE, 2) IN ('0A', '25', '40', '42', '53', '55', '57', '58', 'XX') THEN
            RAISE;
        END IF;
        IF cardinality(v_ids) > 1 THEN
            FOR n IN 1 .. cardinality(v_ids) LOOP
                PERFORM apply_operations(p_organization_id, json_build_array(json_build_object(
                    'operation_id', v_ids[n], 'accepted_at', v_accepted[n], 'write', v_writes[n]
                )));
            END LOOP;
        ELSE
            GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME;
            PERFORM refuse_operation(
                p_organization_id, v_ids[1], v_accepted[1], v_writes[1],
                CASE WHEN v_constraint IS DISTINCT FROM 'appointments_no_overlap'
                    THEN SQLSTATE || ' ' || SQLERRM END
            );
        END IF;
    END;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION apply_operations FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_operations TO appointments_service;

-- Store a webhook that starts after a revision, by default the organization's latest, unless
-- the organization already has p_most webhooks. Calls for one organization are serialized by a
-- lock, so that the limit is never exceeded.
--
-- outcome: CREATED, LIMIT_REACHED, or BEYOND for a revision that does not exist yet.
CREATE OR REPLACE FUNCTION create_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_url text,
    p_description text,
    p_changes text [],
    p_disabled boolean,
    p_header_names text [],
    p_header_values text [],
    p_secret text,
    p_after_revision bigint,
    p_most integer,
    -- The default is for programs of the previous version.
    p_resource_id text DEFAULT NULL
)
RETURNS TABLE (outcome text, organization_revision bigint)
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_revision bigint;
BEGIN
    -- With another seed than the lock of the writes.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236006));

    SELECT coalesce(max(o.revision), 0) INTO v_revision
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    IF p_after_revision > v_revision THEN
        RETURN QUERY SELECT 'BEYOND', v_revision;
    ELSIF p_most <= (SELECT count(*) FROM webhooks w WHERE w.organization_id = p_organization_id) THEN
        RETURN QUERY SELECT 'LIMIT_REACHED', v_revision;
    ELSE
        INSERT INTO webhooks (
            organization_id, webhook_id, url, description, changes, header_names, header_values,
            secret, disabled, created_at, updated_at, cursor_revision, next_attempt_at,
            resource_id
        ) VALUES (
            p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_header_names,
            p_header_values, p_secret, p_disabled, now(), now(),
            coalesce(p_after_revision, v_revision), now(), p_resource_id
        );
        RETURN QUERY SELECT 'CREATED', v_revision;
    END IF;
    PERFORM leave_organization(v_entered);
END
$$;

REVOKE ALL ON FUNCTION create_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook TO appointments_service, appointments_caller;

-- Replace the columns of a webhook that a caller sets. A header whose value is NULL keeps the
-- value that is stored for its name, compared case-insensitively. A change that waits for its
-- next attempt is sent at once, as the URL may be new.
--
-- Returns no row if there is no such webhook. Otherwise returns NULL, or the position (from 1)
-- of the first header that has no stored value to keep; nothing is replaced then.
CREATE OR REPLACE FUNCTION replace_webhook(
    p_organization_id text,
    p_webhook_id text,
    p_url text,
    p_description text,
    p_changes text [],
    p_disabled boolean,
    p_header_names text [],
    p_header_values text [],
    p_resource_id text DEFAULT NULL
)
RETURNS SETOF integer
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_values text [];
    v_missing integer;
BEGIN
    SELECT ARRAY(
        SELECT coalesce(given.value, stored.value)
        FROM unnest(p_header_names, p_header_values)
            WITH ORDINALITY AS given (name, value, place)
        LEFT JOIN unnest(w.header_names, w.header_values) AS stored (name, value)
            ON lower(stored.name) = lower(given.name)
        ORDER BY given.place
    )
    INTO v_values
    FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id
    FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM leave_organization(v_entered);
        RETURN;
    END IF;

    v_missing := array_position(v_values, NULL);
    IF v_missing IS NULL THEN
        UPDATE webhooks w
        SET url = p_url,
            description = p_description,
            changes = p_changes,
            resource_id = p_resource_id,
            disabled = p_disabled,
            disabled_reason = CASE WHEN p_disabled THEN w.disabled_reason ELSE '' END,
            header_names = p_header_names,
            header_values = v_values,
            attempts = 0,
            failing_since = NULL,
            next_attempt_at = now(),
            updated_at = now()
        WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    END IF;
    PERFORM leave_organization(v_entered);
    RETURN NEXT v_missing;
END
$$;

REVOKE ALL ON FUNCTION replace_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replace_webhook TO appointments_service, appointments_caller;

-- Store a new secret. The previous one also signs for p_overlap more seconds. Only the latest
-- four old secrets are kept, since each adds a signature to every request. Returns whether the
-- webhook exists.
CREATE OR REPLACE FUNCTION rotate_webhook_secret(
    p_organization_id text, p_webhook_id text, p_secret text, p_overlap double precision
)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_exists boolean;
BEGIN
    UPDATE webhooks w
    SET secret = p_secret,
        old_secrets = (array_prepend(w.secret, w.old_secrets))[1:4],
        old_secrets_until = (array_prepend(
            now() + make_interval(secs => p_overlap), w.old_secrets_until
        ))[1:4],
        updated_at = now()
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    v_exists := found;
    PERFORM leave_organization(v_entered);
    RETURN v_exists;
END
$$;

REVOKE ALL ON FUNCTION rotate_webhook_secret FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rotate_webhook_secret TO appointments_service, appointments_caller;

-- Delete a webhook. Returns whether it existed.
CREATE FUNCTION delete_webhook(p_organization_id text, p_webhook_id text)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_existed boolean;
BEGIN
    DELETE FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    v_existed := found;
    PERFORM leave_organization(v_entered);
    RETURN v_existed;
END
$$;

REVOKE ALL ON FUNCTION delete_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_webhook TO appointments_service, appointments_caller;

-- Let a webhook send all changes after a revision again, and enable it. A worker that is sending
-- to it notices that the cursor has changed, and stops. Returns whether it was done: the webhook
-- exists, and so does the revision.
CREATE FUNCTION replay_webhook(p_organization_id text, p_webhook_id text, p_after bigint)
RETURNS boolean
LANGUAGE plpgsql
VOLATILE
SECURITY DEFINER
SET search_path = own, public, pg_temp
AS $$
DECLARE
    v_entered constant boolean := enter_organization(p_organization_id);
    v_done boolean;
BEGIN
    UPDATE webhooks w
    SET cursor_revision = p_after,
        disabled = false,
        disabled_reason = '',
        attempts = 0,
        failing_since = NULL,
        next_attempt_at = now(),
        updated_at = now()
    WHERE w.organization_id = p_organization_id
        AND w.webhook_id = p_webhook_id
        AND p_after <= coalesce(
            (SELECT o.revision FROM organizations o WHERE o.organization_id = p_organization_id),
            0
        );
    v_done := found;
    PERFORM leave_organization(v_entered);
    RETURN v_done;
END
$$;

REVOKE ALL ON FUNCTION replay_webhook FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replay_webhook TO appointments_service, appointments_caller;

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- A function may call one that is created after it.
SET LOCAL check_function_bodies = off;

DROP FUNCTION organization_lock_key(text);

DROP FUNCTION revision_at(text,timestamp with time zone);

DROP FUNCTION apply_atomically(text,json,boolean);

DROP FUNCTION apply_batches(json);

DROP FUNCTION rotate_webhook_secret(text,text,text,double precision);

DROP FUNCTION conflicts_of_write(text,json);

DROP FUNCTION apply_writes(text,json,boolean);

DROP FUNCTION create_webhook(text,text,text,text,text[],boolean,text[],text[],text,bigint,integer,text);

DROP FUNCTION replace_webhook(text,text,text,text,text[],boolean,text[],text[],text);

DROP FUNCTION organization_moments(text[]);

DROP FUNCTION replay_webhook(text,text,bigint);

DROP FUNCTION check_organization(text);

DROP FUNCTION enter_organization(text);

DROP FUNCTION leave_organization(boolean);

DROP FUNCTION require_no_organization();

DROP FUNCTION queue_operations(json);

DROP FUNCTION finished_operations(text[],uuid[]);

DROP FUNCTION delete_webhook(text,text);

CREATE OR REPLACE FUNCTION public.organization_lock_key(p_organization_id text)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN hashtextextended(p_organization_id, (7236001)::bigint);

REVOKE ALL ON FUNCTION organization_lock_key(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION organization_lock_key(text) TO appointments_service;

CREATE OR REPLACE FUNCTION public.revision_at(p_organization_id text, p_time timestamp with time zone)
 RETURNS bigint
 LANGUAGE plpgsql
 STABLE
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    low bigint := 0;
    high bigint;
    middle bigint;
BEGIN
    SELECT o.revision INTO high
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    high := coalesce(high, 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        -- The order makes the planner use the primary key, as in apply_writes.
        IF (
            SELECT h.recorded_at <= p_time
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.revision BETWEEN middle AND middle
            ORDER BY h.revision
        ) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END
$function$;

REVOKE ALL ON FUNCTION revision_at(text,timestamp with time zone) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION revision_at(text,timestamp with time zone) TO appointments_service;

CREATE OR REPLACE FUNCTION public.apply_atomically(p_organization_id text, p_writes json, p_validate_only boolean)
 RETURNS TABLE(outcome text, organization_revision bigint, lock_wait double precision, conflicts json, alternatives json, appointment appointments)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET jit TO 'off'
AS $function$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    c_not_refused constant text [] := '{CREATED,UPDATED,CONFIRMED,CANCELLED,UNCHANGED,STALE}';
    v_lock_wait double precision;
    v_now timestamptz;
    v_first_revision bigint;
    v_revision bigint;
    v_ids text [];
    v_outcomes text [];
    v_conflicts json [];
    v_appointments appointments [];
    v_refused boolean;
    v_overlap boolean := false;
    v_taken appointments [];
    n integer;
    found_conflicts record;
BEGIN
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    v_lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT coalesce(max(o.revision), 0), greatest(max(o.recorded_at), clock_timestamp())
    INTO v_first_revision, v_now
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    v_ids := ARRAY(
        SELECT w.value ->> 'id'
        FROM json_array_elements(p_writes) WITH ORDINALITY AS w (value, place)
        ORDER BY w.place
    );

    BEGIN
        -- Holds that have expired and are in the way are recorded first. The others would only
        -- make the transaction longer. Those of the batch itself are recorded by its writes, which
        -- are judged by the etag from before. Ranges of a resource do not overlap, so of the holds
        -- that start before a range only the last one can overlap it.
        PERFORM apply_writes(p_organization_id, due.writes)
        FROM (
            SELECT json_agg(json_build_object(
                'kind', 'EXPIRE', 'id', held.appointment_id, 'actor', '', 'validate_only', false
            ) ORDER BY held.appointment_id) AS writes
            FROM (
                SELECT DISTINCT candidate.appointment_id
                FROM json_to_recordset(p_writes) AS w (
                    resource_id text, additional_resource_ids text [],
                    start_time timestamptz, end_time timestamptz
                )
                CROSS JOIN unnest(array_prepend(w.resource_id, w.additional_resource_ids))
                    AS wanted (resource_id)
                CROSS JOIN LATERAL (
                    (
                        SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                        FROM appointments a
                        WHERE a.organization_id = p_organization_id
                            AND (a.resource_id, a.start_time) < (wanted.resource_id, w.start_time)
                            AND a.state IN ('ACTIVE', 'HELD')
                        ORDER BY a.resource_id DESC, a.start_time DESC
                        LIMIT 1
                    )
                    UNION ALL
                    (
                        SELECT a.resource_id, a.appointment_id, a.end_time, a.hold_until
                        FROM appointments a
                        WHERE a.organization_id = p_organization_id
                            AND a.resource_id = wanted.resource_id
                            AND a.state IN ('ACTIVE', 'HELD')
                            AND a.start_time >= w.start_time
                            AND a.start_time < w.end_time
                        ORDER BY a.start_time
                    )
                ) AS candidate
                WHERE candidate.resource_id = wanted.resource_id
                    AND candidate.end_time > w.start_time
                    AND candidate.hold_until <= v_now
                    AND candidate.appointment_id <> ALL (v_ids)
            ) AS held
        ) AS due
        WHERE due.writes IS NOT NULL;

        -- The exclusion constraint. It is the only deferrable one.
        SET CONSTRAINTS ALL DEFERRED;
        SELECT
            array_agg(r.outcome ORDER BY r.ordinality),
            array_agg(r.conflicts ORDER BY r.ordinality),
            array_agg(r.appointment ORDER BY r.ordinality)
        INTO v_outcomes, v_conflicts, v_appointments
        FROM apply_writes(p_organization_id, p_writes, false) WITH ORDINALITY AS r;
        -- A write that is stale has recorded nothing, but another one may take its place.
        PERFORM apply_writes(p_organization_id, due.writes)
        FROM (
            SELECT json_agg(json_build_object(
                'kind', 'EXPIRE', 'id', a.appointment_id, 'actor', '', 'validate_only', false
            ) ORDER BY a.appointment_id) AS writes
            FROM unnest(v_ids) AS item (id)
            JOIN appointments a
                ON a.organization_id = p_organization_id
                    AND a.appointment_id = item.id
                    AND a.ordinal = 0
            WHERE a.state = 'HELD' AND a.hold_until <= v_now
        ) AS due
        WHERE due.writes IS NOT NULL;
        SELECT coalesce(max(o.revision), 0) INTO v_revision
        FROM organizations o
        WHERE o.organization_id = p_organization_id;
        BEGIN
            SET CONSTRAINTS ALL IMMEDIATE;
        EXCEPTION WHEN exclusion_violation THEN
            v_overlap := true;
        END;

        IF v_overlap THEN
            -- The rows that the batch would occupy. A condition on the state would let the planner
            -- read all rows of the organization for each item.
            SELECT array_agg(taken.a) INTO v_taken
            FROM unnest(v_ids, v_outcomes) AS item (id, outcome)
            CROSS JOIN LATERAL (
                SELECT a
                FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN item.id AND item.id
                ORDER BY a.appointment_id, a.ordinal
                OFFSET 0
            ) AS taken
            WHERE item.outcome = ANY (c_not_refused) AND (taken.a).state IN ('ACTIVE', 'HELD');
        END IF;

        v_refused := v_overlap OR NOT v_outcomes <@ c_not_refused;
        IF v_refused OR p_validate_only THEN
            RAISE EXCEPTION 'nothing is written' USING ERRCODE = 'AP001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'AP001' THEN
        v_revision := v_first_revision;
    END;

    IF v_overlap THEN
        -- The batch is undone, so ranges of a resource do not overlap.
        FOR found_conflicts IN
        WITH taken AS MATERIALIZED (
            SELECT array_position(v_ids, a.appointment_id) AS place, a.*
            FROM unnest(v_taken) AS a
        ),
        -- The items that the batch has moved, and whether others of the batch overlap them.
        -- Writes that changed nothing are in their place rightly.
        mine AS (
            SELECT
                t.place, t.start_time, t.end_time,
                array_agg(t.resource_id ORDER BY t.ordinal) AS resource_ids,
                bool_or(
                    coalesce(t.start_time < t.latest_end, false)
                    OR coalesce(t.end_time > t.next_start, false)
                ) AS crowded
            FROM (
                SELECT
                    taken.*,
                    max(taken.end_time) OVER (
                        by_start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                    ) AS latest_end,
                    lead(taken.start_time) OVER by_start AS next_start
                FROM taken
                WINDOW by_start AS (
                    PARTITION BY taken.resource_id ORDER BY taken.start_time, taken.place
                )
            ) AS t
            WHERE t.revision > v_first_revision
            GROUP BY t.place, t.start_time, t.end_time
            ORDER BY t.place
        ),
        -- More than fit in an error.
        at_fault AS MATERIALIZED (
            SELECT mine.*, outside.conflicts
            FROM mine
            CROSS JOIN LATERAL (
                SELECT conflicting_appointments(
                    p_organization_id, mine.resource_ids, v_ids,
                    mine.start_time, mine.end_time, v_now
                ) AS conflicts
                OFFSET 0
            ) AS outside
            WHERE mine.crowded OR outside.conflicts IS NOT NULL
            ORDER BY mine.place
            LIMIT 64
        ),
        conflict AS (
            SELECT
                at_fault.place, other.appointment_id AS id, other.start_time, other.end_time,
                other.version, other.place - 1 AS index,
                array_agg(shared.resource_id ORDER BY shared.place) AS resource_ids
            FROM at_fault
            CROSS JOIN unnest(at_fault.resource_ids)
                WITH ORDINALITY AS shared (resource_id, place)
            JOIN taken other ON other.resource_id = shared.resource_id
            WHERE at_fault.crowded
                AND other.place <> at_fault.place
                AND other.start_time < at_fault.end_time
                AND at_fault.start_time < other.end_time
            GROUP BY
                at_fault.place, other.appointment_id, other.start_time, other.end_time,
                other.version, other.place
            UNION ALL
            SELECT
                at_fault.place, other.id, other.start, other.end,
                other.version, NULL, other.resource_ids
            FROM at_fault
            CROSS JOIN LATERAL json_to_recordset(at_fault.conflicts) AS other (
                id text, start timestamptz, "end" timestamptz, version integer,
                resource_ids text []
            )
        ),
        numbered AS (
            SELECT
                c.*,
                row_number() OVER (PARTITION BY c.place ORDER BY c.start_time, c.id) AS number
            FROM conflict c
        )
        SELECT
            c.place,
            json_agg(
                json_build_object(
                    'id', c.id, 'start', c.start_time, 'end', c.end_time,
                    'version', c.version, 'resource_ids', c.resource_ids, 'index', c.index
                ) ORDER BY c.number
            ) AS conflicts
        FROM numbered c
        WHERE c.number <= 21
        GROUP BY c.place
        LOOP
            v_outcomes[found_conflicts.place] := 'TIME_RANGE_CONFLICT';
            v_conflicts[found_conflicts.place] := found_conflicts.conflicts;
        END LOOP;
        IF v_outcomes <@ c_not_refused THEN
            RAISE EXCEPTION 'the writes overlap, but no conflict was found'
            USING ERRCODE = 'exclusion_violation', CONSTRAINT = 'appointments_no_overlap';
        END IF;
    END IF;

    FOR n IN 1 .. cardinality(v_outcomes) LOOP
        IF v_refused AND v_outcomes[n] = ANY (c_not_refused) THEN
            v_outcomes[n] := 'NOT_WRITTEN';
        ELSIF (v_appointments[n]).revision > v_revision THEN
            v_appointments[n].revision := 0;
        END IF;
        RETURN QUERY
        SELECT
            v_outcomes[n], v_revision, v_lock_wait, v_conflicts[n], NULL::json, v_appointments[n];
    END LOOP;
END
$function$;

REVOKE ALL ON FUNCTION apply_atomically(text,json,boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_atomically(text,json,boolean) TO appointments_service;

CREATE OR REPLACE FUNCTION public.apply_batches(p_batches json)
 RETURNS TABLE(outcome text, organization_revision bigint, lock_wait double precision, conflicts json, alternatives json, appointment appointments)
 LANGUAGE plpgsql
 SET search_path TO 'public', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET lock_timeout TO '50ms'
AS $function$
#variable_conflict use_column
DECLARE
    batch record;
BEGIN
    FOR batch IN
        SELECT * FROM json_to_recordset(p_batches) AS r (organization_id text, writes json)
    LOOP
        -- apply_writes takes the same lock again, which the transaction already holds.
        IF pg_try_advisory_xact_lock(organization_lock_key(batch.organization_id)) THEN
            RETURN QUERY SELECT * FROM apply_writes(batch.organization_id, batch.writes);
        ELSE
            outcome := 'BUSY';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$function$;

REVOKE ALL ON FUNCTION apply_batches(json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_batches(json) TO appointments_service;

CREATE OR REPLACE FUNCTION public.apply_operations(p_organization_id text, p_operations json)
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_ids uuid[];
    v_accepted timestamptz[];
    v_writes json[];
    v_appointment_ids text[];
    v_constraint text;
    n integer;
BEGIN
    -- Before the query for finished operations: another session may be applying the same ones.
    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));

    SELECT
        array_agg(o.operation_id ORDER BY o.number),
        array_agg(o.accepted_at ORDER BY o.number),
        array_agg(o.write ORDER BY o.number),
        array_agg(o.write ->> 'id' ORDER BY o.number)
    INTO v_ids, v_accepted, v_writes, v_appointment_ids
    FROM (
        SELECT DISTINCT ON (given.operation_id) given.*
        FROM ROWS FROM (
            json_to_recordset(p_operations)
            AS (operation_id uuid, accepted_at timestamptz, write json)
        ) WITH ORDINALITY AS given (operation_id, accepted_at, write, number)
        ORDER BY given.operation_id, given.number
    ) AS o
    WHERE NOT EXISTS (
        SELECT FROM operations done
        WHERE done.organization_id = p_organization_id AND done.operation_id = o.operation_id
        -- Keeps it a look at the primary key for each operation. A join could read all of them.
        OFFSET 0
    );
    IF v_ids IS NULL THEN
        RETURN;
    END IF;

    BEGIN
        INSERT INTO operations (
            organization_id, operation_id, accepted_at, finished_at, appointment_id,
            outcome, organization_revision, revision, conflicts, alternatives
        )
        SELECT
            p_organization_id, v_ids[r.ordinality], v_accepted[r.ordinality], clock_timestamp(),
            v_appointment_ids[r.ordinality],
            r.outcome, r.organization_revision,
            CASE WHEN r.outcome IN (
                'CREATED', 'UPDATED', 'CONFIRMED', 'CANCELLED', 'UNCHANGED', 'STALE'
            ) THEN (r.appointment).revision
                * CASE (r.appointment).state WHEN 'EXPIRED' THEN -1 ELSE 1 END END,
            r.conflicts, r.alternatives
        FROM apply_writes(p_organization_id, array_to_json(v_writes)) WITH ORDINALITY AS r;
    EXCEPTION WHEN OTHERS THEN
        -- Not supported, transaction state and rollback, schema and privileges, resources,
        -- object in use, operator intervention, system, internal.
        IF left(SQLSTATE, 2) IN ('0A', '25', '40', '42', '53', '55', '57', '58', 'XX') THEN
            RAISE;
        END IF;
        IF cardinality(v_ids) > 1 THEN
            FOR n IN 1 .. cardinality(v_ids) LOOP
                PERFORM apply_operations(p_organization_id, json_build_array(json_build_object(
                    'operation_id', v_ids[n], 'accepted_at', v_accepted[n], 'write', v_writes[n]
                )));
            END LOOP;
        ELSE
            GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME;
            PERFORM refuse_operation(
                p_organization_id, v_ids[1], v_accepted[1], v_writes[1],
                CASE WHEN v_constraint IS DISTINCT FROM 'appointments_no_overlap'
                    THEN SQLSTATE || ' ' || SQLERRM END
            );
        END IF;
    END;
END
$function$;

REVOKE ALL ON FUNCTION apply_operations(text,json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_operations(text,json) TO appointments_service;

CREATE OR REPLACE FUNCTION public.refuse_operation(p_organization_id text, p_operation_id uuid, p_accepted_at timestamp with time zone, p_write json, p_failure text)
 RETURNS void
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
    INSERT INTO operations (
        organization_id, operation_id, accepted_at, finished_at, appointment_id,
        outcome, organization_revision, conflicts, failure, write
    )
    SELECT
        p_organization_id, p_operation_id, p_accepted_at, clock_timestamp(),
        coalesce(p_write ->> 'id', ''),
        CASE WHEN p_failure IS NULL THEN 'TIME_RANGE_CONFLICT' ELSE 'FAILED' END,
        coalesce(
            (SELECT o.revision FROM organizations o WHERE o.organization_id = p_organization_id), 0
        ),
        CASE WHEN p_failure IS NULL THEN conflicts_of_write(p_organization_id, p_write) END,
        p_failure,
        CASE WHEN p_failure IS NOT NULL THEN p_write END
    ON CONFLICT DO NOTHING
$function$;

REVOKE ALL ON FUNCTION refuse_operation(text,uuid,timestamp with time zone,json,text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION refuse_operation(text,uuid,timestamp with time zone,json,text) TO appointments_service;

CREATE OR REPLACE FUNCTION public.rotate_webhook_secret(p_organization_id text, p_webhook_id text, p_secret text, p_overlap double precision)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
BEGIN
    UPDATE webhooks w
    SET secret = p_secret,
        old_secrets = (array_prepend(w.secret, w.old_secrets))[1:4],
        old_secrets_until = (array_prepend(
            now() + make_interval(secs => p_overlap), w.old_secrets_until
        ))[1:4],
        updated_at = now()
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    RETURN found;
END
$function$;

REVOKE ALL ON FUNCTION rotate_webhook_secret(text,text,text,double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION rotate_webhook_secret(text,text,text,double precision) TO appointments_service;

CREATE OR REPLACE FUNCTION public.conflicts_of_write(p_organization_id text, p_write json)
 RETURNS json
 LANGUAGE sql
 STABLE
 SET search_path TO 'public', 'pg_temp'
AS $function$
    SELECT conflicting_appointments(
        p_organization_id,
        array_prepend(
            CASE WHEN 'resource_id' <> ALL (named.fields) THEN a.resource_id ELSE w.resource_id END,
            CASE WHEN 'additional_resource_ids' <> ALL (named.fields)
                THEN a.additional_resource_ids ELSE w.additional_resource_ids END
        ),
        ARRAY[w.id],
        CASE WHEN 'start' <> ALL (named.fields) THEN a.start_time ELSE w.start_time END,
        CASE WHEN 'end' <> ALL (named.fields) THEN a.end_time ELSE w.end_time END,
        clock_timestamp()
    )
    FROM json_to_record(p_write) AS w (
        id text,
        resource_id text,
        additional_resource_ids text [],
        start_time timestamptz,
        end_time timestamptz,
        fields text []
    )
    LEFT JOIN appointments a
        ON a.organization_id = p_organization_id AND a.appointment_id = w.id AND a.ordinal = 0
    -- An update that creates has all fields.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN a.appointment_id IS NOT NULL THEN w.fields END AS fields
    ) AS named
$function$;

REVOKE ALL ON FUNCTION conflicts_of_write(text,json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION conflicts_of_write(text,json) TO appointments_service;

CREATE OR REPLACE FUNCTION public.apply_writes(p_organization_id text, p_writes json, p_check_overlap boolean DEFAULT true)
 RETURNS TABLE(outcome text, organization_revision bigint, lock_wait double precision, conflicts json, alternatives json, appointment appointments)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET enable_sort TO 'off'
 SET jit TO 'off'
AS $function$
#variable_conflict use_column
DECLARE
    called_at constant timestamptz := clock_timestamp();
    -- RETURN NEXT returns them.
    v_outcome ALIAS FOR outcome;
    v_revision ALIAS FOR organization_revision;
    stored ALIAS FOR appointment;
    v_recorded_at timestamptz;
    v_first_revision bigint;
    v_exists boolean;
    -- Whether the appointment occupies several resources, before or after the write.
    v_several boolean;
    -- Whether there is a change with a revision of its own, and whether anything else is stored.
    v_changed boolean;
    v_noted boolean;
    v_placed boolean;
    -- The resources that the write leaves.
    v_released text [];
    -- The holds that have expired and that the write needs to be recorded as such.
    v_due text [];
    -- A resource, and the end of the time in which it is searched for appointments.
    v_resource_id text;
    v_before timestamptz;
    w record;
    neighbour record;
    keyed appointment_history%ROWTYPE;
    unchanged unchanged_writes%ROWTYPE;
    -- The latest updated_at that callers sent for the stored appointment, including that of a
    -- cancel; NULL if they sent none. A write with an older one is stale.
    v_guard timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'apply_writes needs READ COMMITTED, not %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'feature_not_supported';
    END IF;

    PERFORM pg_advisory_xact_lock(organization_lock_key(p_organization_id));
    lock_wait := extract(epoch FROM clock_timestamp() - called_at);

    SELECT o.revision, greatest(o.recorded_at, clock_timestamp())
    INTO v_revision, v_recorded_at
    FROM organizations o
    WHERE o.organization_id = p_organization_id;
    IF NOT FOUND THEN
        v_revision := 0;
        v_recorded_at := clock_timestamp();
    END IF;
    v_first_revision := v_revision;

    <<each_write>>
    FOR w IN
        SELECT *
        FROM json_to_recordset(p_writes) AS r (
            kind text,
            id text,
            resource_id text,
            additional_resource_ids text [],
            start_time timestamptz,
            end_time timestamptz,
            title text,
            attributes json,
            created_at timestamptz,
            updated_at timestamptz,
            hold_until timestamptz,
            max_hold double precision,
            fields text [],
            attributes_patch json,
            allow_missing boolean,
            expected_revision bigint,
            create_only boolean,
            idempotency_key text,
            idempotency_digest text,
            actor text,
            validate_only boolean,
            suggest integer
        )
    LOOP
        v_outcome := NULL;
        v_due := NULL;
        v_released := NULL;
        v_changed := false;
        v_noted := false;
        v_placed := false;

        IF w.idempotency_key IS NOT NULL THEN
            SELECT h.* INTO keyed
            FROM appointment_history h
            WHERE h.organization_id = p_organization_id AND h.idempotency_key = w.idempotency_key;
            IF NOT FOUND THEN
                SELECT u.* INTO unchanged
                FROM unchanged_writes u
                WHERE u.organization_id = p_organization_id AND u.idempotency_key = w.idempotency_key;
                IF FOUND THEN
                    SELECT h.* INTO keyed
                    FROM appointment_history h
                    WHERE h.organization_id = p_organization_id
                        AND h.revision BETWEEN abs(unchanged.revision) AND abs(unchanged.revision)
                    ORDER BY h.revision;
                    IF unchanged.revision < 0 THEN
                        keyed.state := 'EXPIRED';
                    END IF;
                    keyed.change := unchanged.outcome;
                    keyed.idempotency_digest := unchanged.idempotency_digest;
                END IF;
            END IF;
            IF FOUND THEN
                IF keyed.idempotency_digest = decode(w.idempotency_digest, 'hex') THEN
                    -- Copies columns by name. It is slow, but such retries are rare.
                    stored := json_populate_record(NULL::appointments, row_to_json(keyed));
                    v_outcome := keyed.change;
                    RETURN NEXT;
                    CONTINUE;
                END IF;
                v_outcome := 'IDEMPOTENCY_KEY_REUSED';
            END IF;
        END IF;

        -- The order makes the planner use the primary key. With an equality, another index can
        -- have the same estimated cost. The first row is that of ordinal 0. A condition on it
        -- would make PostgreSQL prepare a skip scan.
        SELECT a.* INTO stored
        FROM appointments a
        WHERE a.organization_id = p_organization_id AND a.appointment_id BETWEEN w.id AND w.id
        ORDER BY a.appointment_id, a.ordinal;
        v_exists := FOUND;
        v_several := coalesce(stored.additional_resource_ids, w.additional_resource_ids) IS NOT NULL;
        IF stored.hold_until <= v_recorded_at AND stored.state = 'HELD' THEN
            stored.state := 'EXPIRED';
            v_due := ARRAY[w.id];
        END IF;

        -- Most writes have no conditions.
        IF v_outcome IS NULL AND (
            w.expected_revision IS NOT NULL
            OR w.create_only
            OR w.updated_at IS NOT NULL
            OR w.hold_until IS NOT NULL
            OR w.kind <> 'UPSERT' AND (w.kind = 'UPDATE' OR NOT v_exists)
        ) THEN
            IF w.attributes_patch IS NOT NULL THEN
                w.attributes := merge_json(
                    CASE WHEN v_exists THEN stored.attributes ELSE w.attributes END,
                    w.attributes_patch
                );
            END IF;
            IF v_exists OR w.allow_missing IS NOT TRUE THEN
                -- Times that an update does not name are not given, unless it creates.
                IF 'created_at' <> ALL (w.fields) THEN
                    w.created_at := NULL;
                END IF;
                IF 'updated_at' <> ALL (w.fields) THEN
                    w.updated_at := NULL;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := NULL;
                END IF;
            END IF;
            v_guard := coalesce(
                stored.cancel_updated_at, CASE WHEN stored.updated_at_given THEN stored.updated_at END
            );
            IF w.hold_until <= v_recorded_at
                OR w.hold_until > v_recorded_at + make_interval(secs => w.max_hold) THEN
                v_outcome := 'HOLD_UNTIL_INVALID';
            ELSIF NOT v_exists AND w.kind <> 'UPSERT' AND w.allow_missing IS NOT TRUE THEN
                v_outcome := 'APPOINTMENT_NOT_FOUND';
            ELSIF w.expected_revision IS NOT NULL AND (
                NOT v_exists
                OR w.expected_revision NOT IN (
                    0, CASE stored.state WHEN 'EXPIRED' THEN -stored.revision ELSE stored.revision END
                )
            ) THEN
                v_outcome := 'ETAG_MISMATCH';
            ELSIF w.create_only AND v_exists THEN
                v_outcome := 'APPOINTMENT_EXISTS';
            ELSIF w.updated_at < v_guard
                OR w.updated_at = v_guard AND stored.state = 'CANCELLED' AND w.kind <> 'CANCEL' THEN
                v_outcome := 'STALE';
            END IF;
        END IF;

        IF w.kind = 'UPSERT' OR v_outcome IS NOT NULL THEN
            NULL;
        ELSIF w.kind = 'CANCEL' THEN
            IF stored.state = 'CANCELLED' THEN
                v_outcome := 'UNCHANGED';
                -- Nothing visible changes, but updates older than this cancel are stale now.
                IF coalesce(w.updated_at > v_guard, w.updated_at IS NOT NULL) THEN
                    stored.cancel_updated_at := w.updated_at;
                    v_noted := NOT w.validate_only;
                END IF;
            END IF;
        ELSIF w.kind = 'EXPIRE' THEN
            IF v_due IS NULL THEN
                v_outcome := 'UNCHANGED';
            END IF;
        ELSE
            IF NOT v_exists THEN
                NULL;  -- It is created.
            ELSIF stored.state = 'CANCELLED' THEN
                v_outcome := 'APPOINTMENT_CANCELLED';
            ELSIF stored.state = 'EXPIRED' THEN
                v_outcome := 'HOLD_EXPIRED';
            ELSIF w.kind = 'CONFIRM' THEN
                IF stored.state = 'ACTIVE' THEN
                    v_outcome := 'UNCHANGED';
                END IF;
            ELSE
                IF 'resource_id' <> ALL (w.fields) THEN
                    w.resource_id := stored.resource_id;
                END IF;
                IF 'additional_resource_ids' <> ALL (w.fields) THEN
                    w.additional_resource_ids := stored.additional_resource_ids;
                END IF;
                IF 'start' <> ALL (w.fields) THEN
                    w.start_time := stored.start_time;
                END IF;
                IF 'end' <> ALL (w.fields) THEN
                    w.end_time := stored.end_time;
                END IF;
                IF 'title' <> ALL (w.fields) THEN
                    w.title := stored.title;
                END IF;
                IF 'attributes' <> ALL (w.fields) AND w.attributes_patch IS NULL THEN
                    w.attributes := stored.attributes;
                END IF;
                IF 'hold_until' <> ALL (w.fields) THEN
                    w.hold_until := stored.hold_until;
                END IF;
                -- A time of the service's own becomes that of this change.
                IF 'updated_at' <> ALL (w.fields) AND stored.updated_at_given THEN
                    w.updated_at := stored.updated_at;
                END IF;
                -- The rules of service/rules.py that concern fields that the update does not name.
                IF w.start_time >= w.end_time OR w.end_time - w.start_time > '3653 days' THEN
                    v_outcome := 'RANGE_INVALID';
                ELSIF w.resource_id = ANY (w.additional_resource_ids) THEN
                    v_outcome := 'RESOURCES_INVALID';
                ELSIF octet_length(w.attributes::text) > 16384 THEN
                    v_outcome := 'ATTRIBUTES_INVALID';
                END IF;
            END IF;
        END IF;

        IF v_outcome IS NULL AND w.kind IN ('UPSERT', 'UPDATE') THEN
            IF NOT v_exists THEN
                NULL;
            ELSIF stored.state IN ('ACTIVE', 'HELD')
                AND stored.resource_id = w.resource_id
                AND stored.start_time = w.start_time
                AND stored.end_time = w.end_time
                AND stored.title = w.title
                AND stored.attributes::text = w.attributes::text
                AND stored.hold_until IS NOT DISTINCT FROM w.hold_until
                AND stored.additional_resource_ids IS NOT DISTINCT FROM w.additional_resource_ids
                AND (w.created_at IS NULL OR w.created_at = stored.created_at)
                AND (w.updated_at IS NULL OR w.updated_at = stored.updated_at) THEN
                v_outcome := 'UNCHANGED';
            ELSIF w.hold_until IS NOT NULL AND stored.state = 'ACTIVE' THEN
                v_outcome := 'APPOINTMENT_FIRM';
            END IF;
            IF v_outcome IS NULL AND p_check_overlap THEN
                v_resource_id := w.resource_id;
                v_before := w.end_time;
                LOOP
                    -- Ranges of a resource never overlap, so of those that start before the new
                    -- end only the last one can overlap the new range. With the row comparison
                    -- only one index has this order. The row found may belong to another
                    -- resource.
                    SELECT a.resource_id, a.appointment_id, a.start_time, a.end_time, a.hold_until
                    INTO neighbour
                    FROM appointments a
                    WHERE a.organization_id = p_organization_id
                        AND (a.resource_id, a.start_time) < (v_resource_id, v_before)
                        AND a.state IN ('ACTIVE', 'HELD')
                        AND a.appointment_id <> w.id
                    ORDER BY a.resource_id DESC, a.start_time DESC
                    LIMIT 1;
                    IF neighbour.resource_id = v_resource_id
                        AND neighbour.end_time > w.start_time THEN
                        IF neighbour.hold_until <= v_recorded_at THEN
                            v_due := array_append(v_due, neighbour.appointment_id);
                            v_before := neighbour.start_time;
                        ELSE
                            v_outcome := 'TIME_RANGE_CONFLICT';
                            conflicts := conflicting_appointments(
                                p_organization_id,
                                array_prepend(w.resource_id, w.additional_resource_ids),
                                ARRAY[w.id], w.start_time, w.end_time, v_recorded_at
                            );
                            IF w.suggest > 0 THEN
                                alternatives := alternative_ranges(
                                    p_organization_id,
                                    array_prepend(w.resource_id, w.additional_resource_ids),
                                    w.id, w.start_time, w.end_time, v_recorded_at, w.suggest
                                );
                            END IF;
                            RETURN NEXT;
                            conflicts := NULL;
                            alternatives := NULL;
                            CONTINUE each_write;
                        END IF;
                    ELSE
                        EXIT WHEN w.additional_resource_ids IS NULL;
                        -- The next resource. They are distinct.
                        v_resource_id := w.additional_resource_ids[
                            coalesce(array_position(w.additional_resource_ids, v_resource_id), 0) + 1
                        ];
                        EXIT WHEN v_resource_id IS NULL;
                        v_before := w.end_time;
                    END IF;
                END LOOP;
            END IF;
        END IF;

        IF v_outcome IS NULL THEN
            IF v_due IS NOT NULL AND w.kind <> 'EXPIRE' THEN
                IF w.id = ANY (v_due) THEN
                    stored.version := stored.version + 1;
                END IF;
                IF NOT w.validate_only THEN
                    -- This function reads the revision and the earliest time from the table, and
                    -- stores the new ones there.
                    UPDATE organizations o
                    SET revision = v_revision, recorded_at = v_recorded_at
                    WHERE o.organization_id = p_organization_id;
                    PERFORM apply_writes(
                        p_organization_id,
                        (
                            SELECT json_agg(json_build_object(
                                'kind', 'EXPIRE', 'id', due.id, 'actor', '', 'validate_only', false
                            ) ORDER BY due.id COLLATE "C")
                            FROM (SELECT DISTINCT unnest(v_due) AS id) AS due
                        )
                    );
                    SELECT o.revision, o.recorded_at INTO v_revision, v_recorded_at
                    FROM organizations o
                    WHERE o.organization_id = p_organization_id;
                END IF;
            END IF;

            IF w.kind IN ('UPSERT', 'UPDATE') THEN
                v_outcome := CASE WHEN v_exists THEN 'UPDATED' ELSE 'CREATED' END;
                v_placed := NOT v_exists
                    OR stored.start_time <> w.start_time
                    OR stored.end_time <> w.end_time
                    OR stored.resource_id <> w.resource_id
                    OR stored.additional_resource_ids IS DISTINCT FROM w.additional_resource_ids;
                IF v_several OR stored.resource_id <> w.resource_id THEN
                    SELECT array_agg(before.resource_id ORDER BY before.resource_id)
                    INTO v_released
                    FROM unnest(array_prepend(stored.resource_id, stored.additional_resource_ids))
                        AS before (resource_id)
                    WHERE before.resource_id <> w.resource_id
                        AND (before.resource_id = ANY (w.additional_resource_ids)) IS NOT TRUE;
                END IF;
                -- In the order of the table's columns. One assignment is cheaper than many.
                stored := ROW(
                    p_organization_id, w.id, w.resource_id, w.start_time, w.end_time, w.title,
                    w.attributes, coalesce(w.created_at, stored.created_at, v_recorded_at),
                    coalesce(w.updated_at, v_recorded_at), w.updated_at IS NOT NULL,
                    CASE WHEN w.hold_until IS NULL THEN 'ACTIVE' ELSE 'HELD' END,
                    coalesce(stored.version, 0) + 1, v_revision + 1, NULL::timestamptz,
                    0::smallint, w.additional_resource_ids, w.hold_until
                );
            ELSE
                IF w.kind = 'CANCEL' THEN
                    v_outcome := 'CANCELLED';
                    stored.state := 'CANCELLED';
                    stored.cancel_updated_at := w.updated_at;
                ELSIF w.kind = 'CONFIRM' THEN
                    v_outcome := 'CONFIRMED';
                    stored.state := 'ACTIVE';
                    stored.hold_until := NULL;
                ELSE
                    v_outcome := 'EXPIRED';
                END IF;
                stored.version := stored.version + 1;
                stored.revision := v_revision + 1;
            END IF;
            -- A validated write that is not stored has no revision, and therefore no etag.
            IF w.validate_only THEN
                stored.revision := 0;
            ELSE
                v_revision := stored.revision;
                v_changed := true;
            END IF;
        END IF;

        IF v_changed OR v_noted THEN
            IF v_several THEN
                -- Its rows are replaced, since a new one can be in the place of another old one.
                DELETE FROM appointments a
                WHERE a.organization_id = p_organization_id
                    AND a.appointment_id BETWEEN w.id AND w.id;
                INSERT INTO appointments (
                    organization_id, appointment_id, ordinal, resource_id, start_time, end_time,
                    title, attributes, created_at, updated_at, updated_at_given, hold_until, state,
                    version, revision
                )
                SELECT
                    p_organization_id, w.id, more.ordinal, more.resource_id,
                    stored.start_time, stored.end_time, '', '{}', stored.created_at,
                    stored.updated_at, false, stored.hold_until, stored.state,
                    stored.version, stored.revision
                FROM unnest(stored.additional_resource_ids)
                    WITH ORDINALITY AS more (resource_id, ordinal);
            END IF;
            -- ON CONFLICT always uses the primary key.
            INSERT INTO appointments (
                organization_id, appointment_id, ordinal, resource_id, additional_resource_ids,
                start_time, end_time, title, attributes, created_at, updated_at,
                updated_at_given, cancel_updated_at, hold_until, state, version, revision
            ) VALUES (
                p_organization_id, w.id, 0, stored.resource_id, stored.additional_resource_ids,
                stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.updated_at_given,
                stored.cancel_updated_at, stored.hold_until,
                stored.state, stored.version, stored.revision
            )
            ON CONFLICT (organization_id, appointment_id, ordinal) DO UPDATE
            SET resource_id = excluded.resource_id,
                additional_resource_ids = excluded.additional_resource_ids,
                start_time = excluded.start_time,
                end_time = excluded.end_time,
                title = excluded.title,
                attributes = excluded.attributes,
                created_at = excluded.created_at,
                updated_at = excluded.updated_at,
                updated_at_given = excluded.updated_at_given,
                cancel_updated_at = excluded.cancel_updated_at,
                hold_until = excluded.hold_until,
                state = excluded.state,
                version = excluded.version,
                revision = excluded.revision;
        END IF;
        IF v_changed THEN
            INSERT INTO appointment_history (
                organization_id, revision, change, recorded_at, actor,
                idempotency_key, idempotency_digest,
                appointment_id, resource_id, additional_resource_ids, released_resource_ids,
                start_time, end_time, title, attributes,
                created_at, updated_at, hold_until, state, version, placed
            ) VALUES (
                p_organization_id, v_revision, v_outcome, v_recorded_at, w.actor,
                w.idempotency_key,
                CASE WHEN w.idempotency_key IS NOT NULL THEN decode(w.idempotency_digest, 'hex') END,
                stored.appointment_id, stored.resource_id, stored.additional_resource_ids,
                v_released, stored.start_time, stored.end_time, stored.title, stored.attributes,
                stored.created_at, stored.updated_at, stored.hold_until, stored.state, stored.version,
                v_placed
            );
        ELSIF w.idempotency_key IS NOT NULL AND v_outcome IN ('UNCHANGED', 'STALE')
            AND NOT w.validate_only THEN
            INSERT INTO unchanged_writes (
                organization_id, idempotency_key, idempotency_digest, outcome, revision
            ) VALUES (
                p_organization_id, w.idempotency_key, decode(w.idempotency_digest, 'hex'),
                v_outcome, CASE WHEN v_due IS NULL THEN stored.revision ELSE -stored.revision END
            );
        END IF;

        RETURN NEXT;
    END LOOP;

    IF v_revision > v_first_revision THEN
        INSERT INTO organizations (organization_id, revision, recorded_at)
        VALUES (p_organization_id, v_revision, v_recorded_at)
        ON CONFLICT (organization_id) DO UPDATE
        SET revision = excluded.revision, recorded_at = excluded.recorded_at;
    END IF;
END
$function$;

REVOKE ALL ON FUNCTION apply_writes(text,json,boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_writes(text,json,boolean) TO appointments_service;

CREATE OR REPLACE FUNCTION public.create_webhook(p_organization_id text, p_webhook_id text, p_url text, p_description text, p_changes text[], p_disabled boolean, p_header_names text[], p_header_values text[], p_secret text, p_after_revision bigint, p_most integer, p_resource_id text DEFAULT NULL::text)
 RETURNS TABLE(outcome text, organization_revision bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_revision bigint;
BEGIN
    -- With another seed than the lock of the writes.
    PERFORM pg_advisory_xact_lock(hashtextextended(p_organization_id, 7236006));

    SELECT coalesce(max(o.revision), 0) INTO v_revision
    FROM organizations o
    WHERE o.organization_id = p_organization_id;

    IF p_after_revision > v_revision THEN
        RETURN QUERY SELECT 'BEYOND', v_revision;
    ELSIF p_most <= (SELECT count(*) FROM webhooks w WHERE w.organization_id = p_organization_id) THEN
        RETURN QUERY SELECT 'LIMIT_REACHED', v_revision;
    ELSE
        INSERT INTO webhooks (
            organization_id, webhook_id, url, description, changes, header_names, header_values,
            secret, disabled, created_at, updated_at, cursor_revision, next_attempt_at,
            resource_id
        ) VALUES (
            p_organization_id, p_webhook_id, p_url, p_description, p_changes, p_header_names,
            p_header_values, p_secret, p_disabled, now(), now(),
            coalesce(p_after_revision, v_revision), now(), p_resource_id
        );
        RETURN QUERY SELECT 'CREATED', v_revision;
    END IF;
END
$function$;

REVOKE ALL ON FUNCTION create_webhook(text,text,text,text,text[],boolean,text[],text[],text,bigint,integer,text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION create_webhook(text,text,text,text,text[],boolean,text[],text[],text,bigint,integer,text) TO appointments_service;

CREATE OR REPLACE FUNCTION public.replace_webhook(p_organization_id text, p_webhook_id text, p_url text, p_description text, p_changes text[], p_disabled boolean, p_header_names text[], p_header_values text[], p_resource_id text DEFAULT NULL::text)
 RETURNS SETOF integer
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'public', 'pg_temp'
AS $function$
DECLARE
    v_values text [];
    v_missing integer;
BEGIN
    SELECT ARRAY(
        SELECT coalesce(given.value, stored.value)
        FROM unnest(p_header_names, p_header_values)
            WITH ORDINALITY AS given (name, value, place)
        LEFT JOIN unnest(w.header_names, w.header_values) AS stored (name, value)
            ON lower(stored.name) = lower(given.name)
        ORDER BY given.place
    )
    INTO v_values
    FROM webhooks w
    WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    v_missing := array_position(v_values, NULL);
    IF v_missing IS NULL THEN
        UPDATE webhooks w
        SET url = p_url,
            description = p_description,
            changes = p_changes,
            resource_id = p_resource_id,
            disabled = p_disabled,
            disabled_reason = CASE WHEN p_disabled THEN w.disabled_reason ELSE '' END,
            header_names = p_header_names,
            header_values = v_values,
            attempts = 0,
            failing_since = NULL,
            next_attempt_at = now(),
            updated_at = now()
        WHERE w.organization_id = p_organization_id AND w.webhook_id = p_webhook_id;
    END IF;
    RETURN NEXT v_missing;
END
$function$;

REVOKE ALL ON FUNCTION replace_webhook(text,text,text,text,text[],boolean,text[],text[],text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION replace_webhook(text,text,text,text,text[],boolean,text[],text[],text) TO appointments_service;

DROP SCHEMA own CASCADE;
-- The role is not dropped: another database of the server may use it.
REVOKE ALL ON SCHEMA public FROM appointments_caller;
REVOKE ALL ON schema_migrations, api_keys FROM appointments_caller;
