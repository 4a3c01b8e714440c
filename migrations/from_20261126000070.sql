-- Prepares a database with the old migrations, up to 20261126000070, for the current ones. Stop
-- all programs, run it once as the user who applies migrations, then apply the migrations:
--
--     psql --set ON_ERROR_STOP=1 --file migrations/from_20261126000070.sql "$DATABASE_URL"
--     make migrate
--
-- The tables are those of the first four migrations, so these are marked as applied. No rows are
-- lost. The functions are dropped; the fifth migration creates them.
BEGIN;
SET LOCAL search_path = public;

DO $$
DECLARE
    v_applied text;
BEGIN
    LOCK TABLE schema_migrations;
    SELECT string_agg(version, ' ' ORDER BY version) INTO v_applied FROM schema_migrations;
    IF v_applied IS DISTINCT FROM '20261122000001 20261122000002 20261122000003 20261122000004 '
        '20261122000005 20261122000006 20261122000007 20261126000010 20261126000020 '
        '20261126000060 20261126000061 20261126000062 20261126000070' THEN
        RAISE EXCEPTION 'the database is not at 20261126000070; applied are: %', v_applied;
    END IF;
    -- The digests of queued operations would need a version too, see below.
    IF EXISTS (
        SELECT FROM queued_operations q WHERE q.write ->> 'idempotency_key' IS NOT NULL
    ) THEN
        RAISE EXCEPTION 'operations with an idempotency key are queued: let workers apply them';
    END IF;
END
$$;

DROP TRIGGER queued_operations_numbered ON queued_operations;
DROP FUNCTION overlapping_appointments;
DROP FUNCTION apply_writes;
DROP FUNCTION apply_batches;
DROP FUNCTION revision_at;
DROP FUNCTION number_transaction;
DROP FUNCTION first_queued_sequence;
DROP FUNCTION advance_operation_queue;
DROP FUNCTION count_queued_operations;
DROP FUNCTION lease_operations;
DROP FUNCTION refuse_operation;
DROP FUNCTION apply_operations;
DROP FUNCTION apply_queued_operations;
DROP FUNCTION give_up_operation;
DROP FUNCTION create_webhook(text, text, text, text, text [], boolean, text, bigint, integer);
DROP FUNCTION create_webhook;
DROP FUNCTION replace_webhook;
DROP FUNCTION rotate_webhook_secret;
DROP FUNCTION webhook_secrets;

ALTER TABLE webhooks VALIDATE CONSTRAINT webhooks_headers_have_values;

-- Add the version, 1, to digests, which now begin with it. Without it a repeated write would not
-- be recognized.
UPDATE appointment_history SET idempotency_digest = '\x01'::bytea || idempotency_digest
WHERE octet_length(idempotency_digest) = 32;
UPDATE unchanged_writes SET idempotency_digest = '\x01'::bytea || idempotency_digest
WHERE octet_length(idempotency_digest) = 32;

DELETE FROM schema_migrations;
INSERT INTO schema_migrations (version)
VALUES ('20261126000101'), ('20261126000102'), ('20261126000103'), ('20261126000104');
COMMIT;
