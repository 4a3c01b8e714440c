-- migrate:up

-- What writes appointments, and what ends operations, works with the rights of its owner:
-- the role that migrates, which owns the tables. The service's role may call it, and has no
-- rights of its own that lead past it. Every one of these functions pins its search_path.
ALTER FUNCTION apply_writes SECURITY DEFINER;
ALTER FUNCTION lease_operations SECURITY DEFINER;
ALTER FUNCTION refuse_operation SECURITY DEFINER;
ALTER FUNCTION apply_operations SECURITY DEFINER;
ALTER FUNCTION apply_queued_operations SECURITY DEFINER;
ALTER FUNCTION give_up_operation SECURITY DEFINER;

-- A function of somebody else's in there might be taken for one of PostgreSQL's. New
-- databases have it so since PostgreSQL 15, older ones do not.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

REVOKE ALL ON organizations, appointments, appointment_history, unchanged_writes, operations,
queued_operations, operation_leases
FROM appointments_service;
GRANT SELECT ON organizations, appointments, appointment_history TO appointments_service;
-- To accept, and to list.
GRANT SELECT, INSERT ON queued_operations TO appointments_service;
-- To list, and to delete what has been kept for long enough.
GRANT SELECT, DELETE ON operations TO appointments_service;
-- To give leases back.
GRANT SELECT, UPDATE (leased_until, attempts) ON operation_leases TO appointments_service;

-- migrate:down

GRANT SELECT, INSERT, UPDATE ON organizations, appointments TO appointments_service;
GRANT SELECT, INSERT ON appointment_history, unchanged_writes TO appointments_service;
GRANT SELECT, INSERT, DELETE ON operations TO appointments_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON queued_operations, operation_leases
TO appointments_service;
ALTER FUNCTION apply_writes SECURITY INVOKER;
ALTER FUNCTION lease_operations SECURITY INVOKER;
ALTER FUNCTION refuse_operation SECURITY INVOKER;
ALTER FUNCTION apply_operations SECURITY INVOKER;
ALTER FUNCTION apply_queued_operations SECURITY INVOKER;
ALTER FUNCTION give_up_operation SECURITY INVOKER;
