-- migrate:up transaction:false

-- For lists of one resource: the appointments that have several.
-- squawk-ignore prefer-robust-stmts
CREATE INDEX CONCURRENTLY appointment_history_shared
ON appointment_history (organization_id, start_time, appointment_id, revision, end_time)
WHERE placed AND additional_resource_ids IS NOT NULL;

-- migrate:down transaction:false

DROP INDEX CONCURRENTLY appointment_history_shared;
