-- migrate:up

-- A plan made for the values of one call is not kept, and planning costs several times
-- what running costs; which plans are kept would else depend on the statistics of the
-- moment. No statistics, however old, make a scan of a whole table right here.
ALTER FUNCTION apply_writes SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION apply_writes SET enable_seqscan = off;

-- Applies the batches of several organizations, each by apply_writes, in one transaction,
-- so that many small organizations share a round trip and a commit.
--
-- batches: a JSON array of {"organization_id", "writes"}, each organization once. The
-- rows are those of apply_writes, one a write, in the order of the batches.
--
-- None waits for another's lock: an organization whose lock is taken is left out, with one
-- row whose outcome is BUSY in place of its rows. What else a write could wait for (rows
-- locked by hand) ends the whole call after a moment with lock_not_available; its caller
-- applies the batches one by one then.
CREATE FUNCTION apply_batches(p_batches json)
RETURNS TABLE (
    outcome text,
    organization_revision bigint,
    lock_wait double precision,
    appointment_id text,
    resource_id text,
    start_time timestamptz,
    end_time timestamptz,
    title text,
    attributes json,
    created_at timestamptz,
    updated_at timestamptz,
    state text,
    version integer,
    revision bigint,
    conflicts json
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
    FOR batch IN
        SELECT * FROM json_to_recordset(p_batches) AS r (organization_id text, writes json)
    LOOP
        -- The same key as in apply_writes, which then has the lock already.
        IF pg_try_advisory_xact_lock(hashtextextended(batch.organization_id, 7236001)) THEN
            RETURN QUERY SELECT * FROM apply_writes(batch.organization_id, batch.writes);
        ELSE
            outcome := 'BUSY';
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

REVOKE ALL ON FUNCTION apply_batches FROM PUBLIC;
GRANT EXECUTE ON FUNCTION apply_batches TO appointments_service;

-- migrate:down

DROP FUNCTION apply_batches;
ALTER FUNCTION apply_writes RESET plan_cache_mode;
ALTER FUNCTION apply_writes RESET enable_seqscan;
