-- migrate:up

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

-- Return the current state of appointments, given as pairs of organization and id, with the moment
-- of the organization. There is a row for each pair, with its place, from 1. An appointment that does
-- not exist is null. The conditions are those of service/reads/present.py. OFFSET 0 and LIMIT keep the
-- planner from joining with all rows.
CREATE FUNCTION current_appointments(p_organization_ids text [], p_ids text [])
RETURNS TABLE (
    place bigint,
    organization_revision bigint,
    recorded_at timestamptz,
    clock timestamptz,
    appointment appointments
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
    SELECT
        wanted.place,
        coalesce(organization.revision, 0),
        organization.recorded_at,
        greatest(organization.recorded_at, now()),
        found.appointment
    FROM unnest(p_organization_ids, p_ids) WITH ORDINALITY AS wanted (organization_id, id, place)
    LEFT JOIN LATERAL (
        SELECT o.revision, o.recorded_at
        FROM organizations o
        WHERE o.organization_id = wanted.organization_id
        OFFSET 0
    ) AS organization ON true
    LEFT JOIN LATERAL (
        SELECT a AS appointment
        FROM appointments a
        WHERE a.organization_id = wanted.organization_id AND a.appointment_id >= wanted.id
            AND (a.appointment_id, a.ordinal) <= (wanted.id, 0)
        ORDER BY a.appointment_id DESC, a.ordinal DESC
        LIMIT 1
    ) AS found ON true;
END
$$;

REVOKE ALL ON FUNCTION current_appointments FROM PUBLIC;
GRANT EXECUTE ON FUNCTION current_appointments TO appointments_service, appointments_caller;

-- migrate:down

-- Other sessions queue behind a waiting lock request. Fail instead; run it again then.
SET LOCAL lock_timeout = '2s';

DROP FUNCTION current_appointments(text[],text[]);
