-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- Return lists of what occupies a range, by start and id. They are given as parallel arrays: those
-- that intersect [start, end) of an organization, of all resources or of one, at most so many. There
-- is a row for each appointment, with the place of its list, from 1, and the moment of the
-- organization. For a list without appointments there is one in which the appointment is null.
--
-- The conditions are those of service/reads/present.py for such a list, which says how they fit the
-- indexes. Since the function is stable, all lists have the snapshot of the statement.
--
-- A list delays the others. If one takes long, a row of it has no revision: then it may lack
-- appointments, and is to be read alone. That is known by what is read, as a busy server takes long
-- for every list.
CREATE FUNCTION listed_appointments(
    p_organization_ids text [],
    p_resource_ids text [],
    p_starts timestamptz [],
    p_ends timestamptz [],
    p_limits integer []
)
RETURNS TABLE (
    place integer,
    organization_revision bigint,
    recorded_at timestamptz,
    clock timestamptz,
    appointment appointments
)
LANGUAGE plpgsql
STABLE
SECURITY DEFINER
SET search_path = public, pg_temp
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    -- How many rows are read that start in a range, whether they occupy it or not. The last of
    -- them is in the list, without a revision.
    c_most constant integer := 500;
    -- How many bytes of attributes a list may have. An appointment with more than its share is
    -- null, without a revision.
    c_bytes constant integer := 262144;
    -- How many blocks are read of the index that finds what is running, about a millisecond.
    c_blocks constant integer := 150;
    c_running constant regclass := 'appointments_no_overlap';
    v_organization_id text;
    v_resource_id text;
    v_start timestamptz;
    v_end timestamptz;
    v_limit integer;
    v_revision bigint;
    v_recorded_at timestamptz;
    v_clock timestamptz;
    v_found integer;
    v_blocks bigint;
BEGIN
    PERFORM require_no_organization();
    FOR v_place IN 1 .. cardinality(p_organization_ids) LOOP
        v_organization_id := p_organization_ids[v_place];
        v_resource_id := p_resource_ids[v_place];
        v_start := p_starts[v_place];
        v_end := p_ends[v_place];
        v_limit := p_limits[v_place];
        SELECT coalesce(max(o.revision), 0), max(o.recorded_at), greatest(max(o.recorded_at), now())
        INTO v_revision, v_recorded_at, v_clock
        FROM organizations o
        WHERE o.organization_id = v_organization_id;
        v_blocks := pg_stat_get_xact_blocks_fetched(c_running);
        -- Few of the rows that are looked at are listed, and only those are read with their content,
        -- which may be stored elsewhere. That of a row for a further resource is its appointment's.
        RETURN QUERY
        SELECT
            v_place, CASE WHEN listed.number < c_most AND whole.fits THEN v_revision END,
            v_recorded_at, v_clock, CASE WHEN whole.fits THEN whole.appointment END
        FROM (
            (
                SELECT starting.start_time, starting.appointment_id, starting.number
                FROM (
                    SELECT
                        a.start_time, a.appointment_id, a.ordinal, a.state, a.hold_until,
                        row_number() OVER (ORDER BY a.start_time, a.appointment_id) AS number
                    FROM appointments a
                    WHERE v_resource_id IS NULL AND a.organization_id = v_organization_id
                        AND a.start_time >= v_start AND a.start_time < v_end
                    ORDER BY a.start_time, a.appointment_id
                    LIMIT c_most
                ) AS starting
                WHERE starting.number = c_most
                    OR (
                        starting.ordinal = 0 AND starting.state IN ('ACTIVE', 'HELD')
                        AND (starting.hold_until IS NULL OR starting.hold_until > v_clock)
                    )
                ORDER BY starting.start_time, starting.appointment_id
                LIMIT v_limit
            )
            UNION ALL
            SELECT running.start_time, running.appointment_id, 0
            FROM (
                SELECT a.start_time, a.appointment_id
                FROM appointments a
                WHERE v_resource_id IS NULL AND a.organization_id = v_organization_id
                    AND a.ordinal = 0 AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                    AND tstzrange(a.start_time, a.end_time) @> v_start
                OFFSET 0
            ) AS running
            WHERE running.start_time < v_start
            UNION ALL
            -- No two that occupy a resource have the same start: ids need not be compared.
            (
                SELECT a.start_time, a.appointment_id, 0
                FROM appointments a
                WHERE v_resource_id IS NOT NULL AND a.organization_id = v_organization_id
                    AND (a.resource_id, a.start_time) >= (v_resource_id, v_start)
                    AND (a.resource_id, a.start_time) < (v_resource_id, v_end)
                    AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                ORDER BY a.resource_id, a.start_time
                LIMIT v_limit
            )
            UNION ALL
            SELECT running.start_time, running.appointment_id, 0
            FROM (
                SELECT a.start_time, a.appointment_id
                FROM appointments a
                WHERE v_resource_id IS NOT NULL AND a.organization_id = v_organization_id
                    AND a.resource_id = v_resource_id
                    AND a.state IN ('ACTIVE', 'HELD')
                    AND (a.hold_until IS NULL OR a.hold_until > v_clock)
                    AND tstzrange(a.start_time, a.end_time) @> v_start
                OFFSET 0
            ) AS running
            WHERE running.start_time < v_start
            ORDER BY start_time, appointment_id, number
            LIMIT v_limit
        ) AS listed
        CROSS JOIN LATERAL (
            SELECT a AS appointment, octet_length(a.attributes::text) <= c_bytes / v_limit AS fits
            FROM appointments a
            WHERE a.organization_id = v_organization_id
                AND a.appointment_id >= listed.appointment_id
                AND (a.appointment_id, a.ordinal) <= (listed.appointment_id, 0)
            ORDER BY a.appointment_id DESC, a.ordinal DESC
            LIMIT 1
        ) AS whole
        ORDER BY listed.start_time, listed.appointment_id, listed.number;
        GET DIAGNOSTICS v_found = ROW_COUNT;
        IF pg_stat_get_xact_blocks_fetched(c_running) - v_blocks > c_blocks THEN
            v_revision := NULL;
        END IF;
        IF v_found = 0 OR v_revision IS NULL THEN
            RETURN QUERY
            SELECT v_place, v_revision, v_recorded_at, v_clock, NULL::appointments;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION listed_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION listed_appointments TO appointments_service, appointments_caller;

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

DROP FUNCTION listed_appointments(text[],text[],timestamp with time zone[],timestamp with time zone[],integer[]);
