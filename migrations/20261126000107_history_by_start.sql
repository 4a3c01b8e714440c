-- migrate:up transaction:false

-- Writes continue meanwhile. If the statement fails, it leaves an invalid index: drop that, and
-- migrate again.

-- For lists of an organization as of a revision. Changes that left resource and range as they were
-- are not in it, so that they do not pay for it (docs/decisions/0020-the-past-by-places.md).
-- squawk-ignore prefer-robust-stmts
CREATE INDEX CONCURRENTLY appointment_history_by_start
ON appointment_history (
    organization_id, start_time, appointment_id, revision, end_time, resource_id
)
WHERE placed;

-- migrate:down transaction:false

DROP INDEX CONCURRENTLY appointment_history_by_start;
