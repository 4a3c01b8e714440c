-- migrate:up transaction:false

-- The few appointments that are longer than a working day and run at the start of a list: the
-- shorter ones are found by their start.
-- squawk-ignore prefer-robust-stmts
CREATE INDEX CONCURRENTLY appointment_history_long_ranges ON appointment_history
USING gist (organization_id, tstzrange(start_time, end_time))
WHERE placed AND end_time - start_time > interval '8 hours';

-- migrate:down transaction:false

DROP INDEX CONCURRENTLY appointment_history_long_ranges;
