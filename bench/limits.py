"""The limits: pgbench scripts that execute a workload directly in PostgreSQL.

Their variables are the fields of Workload, `prefix` for the organization's name, and
`clients`. Each client counts its transactions, so that together they use every number once.
Writes call the same function as the service; reads are like those in service/reads/store.py.
"""

from bench.workload import (
    BATCH,
    DAY,
    FIRST_DAY,
    HOUR,
    SHIFTS,
    SLOTS,
    STRIDE,
    WEEKS,
    WINDOW,
    YEAR,
    Operation,
)
from service.postgres.rows import APPOINTMENT
from service.reads import occupied
from service.writes.store import APPLIED

_NUMBER = r"""
\set turn :turn + 1
\set number :first + :turn * :clients + :client_id
\set organization :number % :organizations
"""

_ORGANIZATION = "(:prefix || '-' || :organization)"

# A write as JSON text, from its id, start and end (Unix time). The spaces after colons keep
# pgbench from substituting variables there.
_WRITE = """
    '{{"kind": "UPSERT", "id": "' || {id} || '", "start_time": "' || to_timestamp({start})
    || '", "end_time": "' || to_timestamp({end}) || '", "resource_id": "", "title": "",'
    || '"attributes": {{}}, "create_only": false, "actor": "", "validate_only": false}}'
"""

_ONE = f"""
SELECT {APPLIED} FROM apply_writes(
    {_ORGANIZATION}, ('[' || {_WRITE.format(id=":number", start=":start", end=":end")} || ']')::json
);
"""

_UPSERT = rf"""
\set start {FIRST_DAY + HOUR} + :number * {STRIDE} % :stored * {DAY} + :number / :stored
\set end :start + 1
{_ONE}
"""

_CONTEND = rf"""
\set start {FIRST_DAY} + :number * {STRIDE} % {SLOTS} * 600
\set end :start + 1800
{_ONE}
"""

# A hold, then its confirmation. Each is a transaction of its own, and counts as one.
_HOLD = rf"""
\set turn :turn + 1
\set pair :turn / 2
\set number :first + :pair * :clients + :client_id
\set organization :number % :organizations
\if :turn % 2 = 0
\set start {FIRST_DAY + HOUR} + :number * {STRIDE} % :stored * {DAY} + :number / :stored
\set end :start + 1
SELECT {APPLIED} FROM apply_writes({_ORGANIZATION}, ('[' || replace(
    {_WRITE.format(id=":number", start=":start", end=":end")},
    '{{}},', '{{}}, "max_hold": 86400, "hold_until": "' || now() + interval '1 hour' || '",'
) || ']')::json);
\else
SELECT {APPLIED} FROM apply_writes({_ORGANIZATION}, ('[{{"kind": "CONFIRM", "id": "' || :number
    || '", "actor": "", "validate_only": false}}]')::json);
\endif
"""

# For an organization with nothing stored.
_BATCH = f"""
\\set low :number * {BATCH}
\\set high :low + {BATCH - 1}
SELECT {APPLIED} FROM apply_writes({_ORGANIZATION}, (
    SELECT '[' || string_agg({_WRITE.format(id="id", start="start", end="start + 1")}, ',') || ']'
    FROM (
        SELECT id, {FIRST_DAY + HOUR} + id AS start
        FROM generate_series(:low::bigint, :high::bigint) AS id
    ) AS numbered
)::json);
"""

_READ = f"""
SELECT organization.revision, organization.recorded_at, found.*
FROM (
    SELECT coalesce(max(o.revision), 0) AS revision, max(o.recorded_at) AS recorded_at
    FROM organizations o
    WHERE o.organization_id = {_ORGANIZATION}
) AS organization
LEFT JOIN LATERAL ({{query}}) AS found ON true
ORDER BY {{order}};
"""

_GET = rf"""
\set day (:number / :organizations * {STRIDE}) % :stored
""" + _READ.format(
    query=f"""
    SELECT {APPOINTMENT} FROM appointments
    WHERE organization_id = {_ORGANIZATION} AND appointment_id = 'stored-' || :day
    """,
    order="1",
)

_PART = f"""
    SELECT {APPOINTMENT} FROM {{source}} AND start_time {{condition}}
    ORDER BY start_time, appointment_id LIMIT 101
"""
_ACTIVE = f"appointments WHERE organization_id = {_ORGANIZATION} AND state = 'ACTIVE'"
_STARTING = _PART.format(
    source=_ACTIVE, condition=">= to_timestamp(:start) AND start_time < to_timestamp(:end)"
)
_RUNNING = _PART.format(
    source=f"""(
        SELECT * FROM {_ACTIVE} AND tstzrange(start_time, end_time) @> to_timestamp(:start) OFFSET 0
    ) AS running WHERE true""",
    condition="< to_timestamp(:start)",
)
_WINDOW = rf"""
\set end :start + {WINDOW * DAY}
""" + _READ.format(
    query=f"""
    SELECT * FROM (({_STARTING}) UNION ALL ({_RUNNING})) AS parts
    ORDER BY start_time, appointment_id LIMIT 101
    """,
    order="start_time, appointment_id",
)

_DAYS = f":number / :organizations * {STRIDE} % (:stored - {WINDOW - 1})"
_LIST = rf"\set start {FIRST_DAY} + {_DAYS} * {DAY}" + _WINDOW
_PAGE = rf"\set start {FIRST_DAY}" + _WINDOW

# The statement of the service, with expressions for its parameters.
_OCCUPIED = f"""
SELECT organization.revision, organization.clock, found.*
FROM (
    SELECT max(o.revision) AS revision, greatest(max(o.recorded_at), now()) AS clock
    FROM organizations o
    WHERE o.organization_id = %(organization_id)s
) AS organization
LEFT JOIN LATERAL ({occupied.query(None)}) AS found ON true
ORDER BY {occupied.IN_ORDER};
""" % {
    "organization_id": _ORGANIZATION,
    "resource_ids": "(SELECT array_agg('resource-' || n) FROM generate_series(1, :wanted) AS n)",
    "start": "to_timestamp(:start)",
    "end": "to_timestamp(:end)",
}
_AVAILABILITY = rf"""
\set wanted :resources
\set start {FIRST_DAY} - :number % {SHIFTS} * 60
\set end :start + {YEAR}
{_OCCUPIED}
"""
_CALENDAR = _AVAILABILITY.replace(f"- :number % {SHIFTS} * 60", "")
_BOOKING = rf"""
\set wanted 10
\set start {FIRST_DAY} + :number % {WEEKS} * 60
\set end :start + {7 * DAY}
{_OCCUPIED}
"""

SCRIPTS: dict[Operation, str] = {
    "upsert": _NUMBER + _UPSERT,
    "contend": _NUMBER + _CONTEND,
    "batch": _NUMBER + _BATCH,
    "hold": _HOLD,
    "get": _NUMBER + _GET,
    "list": _NUMBER + _LIST,
    "page": _NUMBER + _PAGE,
    "availability": _NUMBER + _AVAILABILITY,
    "calendar": _NUMBER + _CALENDAR,
    "booking": _NUMBER + _BOOKING,
}
