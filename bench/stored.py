"""Stores appointments before a load, and counts overlaps afterwards."""

import psycopg

from bench.workload import DAY, FIRST_DAY, HOUR, YEAR

# The same state as after one upsert per appointment by apply_writes.
_PRELOAD = (
    """
    INSERT INTO appointments (
        organization_id, appointment_id, resource_id, start_time, end_time, title, attributes,
        created_at, updated_at, updated_at_given, state, version, revision
    )
    SELECT
        %(name)s || '-' || organization, 'stored-' || number,
        CASE %(resources)s WHEN 1 THEN '' ELSE 'resource-' || number %% %(resources)s + 1 END,
        to_timestamp(%(first)s + place * %(step)s),
        to_timestamp(%(first)s + place * %(step)s + %(length)s),
        '', '{}', now(), now(), false, 'ACTIVE', 1, number + 1
    FROM generate_series(0, %(organizations)s - 1) AS organization,
        generate_series(0, %(stored)s - 1::bigint) AS number,
        LATERAL (SELECT number / %(resources)s) AS placed (place)
    """,
    """
    INSERT INTO appointment_history (
        organization_id, revision, change, recorded_at, actor, appointment_id, resource_id,
        start_time, end_time, title, attributes, created_at, updated_at, state, version
    )
    SELECT
        organization_id, revision, 'CREATED', created_at, '', appointment_id, resource_id,
        start_time, end_time, title, attributes, created_at, updated_at, state, version
    FROM appointments
    WHERE starts_with(organization_id, %(name)s || '-')
    """,
    """
    INSERT INTO organizations (organization_id, revision, recorded_at)
    SELECT organization_id, max(revision), max(recorded_at)
    FROM appointment_history
    WHERE starts_with(organization_id, %(name)s || '-')
    GROUP BY organization_id
    """,
)

# Independent of the exclusion constraint: in the order of their starts, an appointment
# overlaps if it starts before all previous ones have ended.
_OVERLAPPING = """
    SELECT count(*)
    FROM (
        SELECT
            start_time,
            max(end_time) OVER (
                PARTITION BY organization_id, resource_id
                ORDER BY start_time, end_time, appointment_id
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS ended
        FROM appointments
        WHERE state = 'ACTIVE'
    ) AS ordered
    WHERE start_time < ended
"""


def preload(url: str, name: str, *, organizations: int, stored: int, resources: int = 1) -> None:
    """Store `stored` appointments in each of the organizations `name`-0 and so on.

    Of one resource, one hour a day; of several, twenty minutes each, evenly over a year.
    """
    values = {
        "name": name,
        "organizations": organizations,
        "stored": stored,
        "resources": resources,
        "first": FIRST_DAY,
        "step": DAY if resources == 1 else YEAR * resources // stored // 600 * 600,
        "length": HOUR if resources == 1 else 1200,
    }
    with psycopg.connect(url) as connection:
        for statement in _PRELOAD:
            connection.execute(statement, values)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def overlapping(url: str) -> int:
    """Return the number of active appointments in the database that overlap earlier ones."""
    with psycopg.connect(url) as connection:
        [(count,)] = connection.execute(_OVERLAPPING).fetchall()
    return int(count)
