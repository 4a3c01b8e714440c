-- migrate:up

-- `python -m service verify` reads every table that tells what was written. The role can read the keys
-- of the other writes in the history already.
GRANT SELECT ON unchanged_writes TO appointments_service;

-- migrate:down

REVOKE SELECT ON unchanged_writes FROM appointments_service;
