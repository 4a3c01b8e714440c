"""Whether the stored appointments are what the history leads to, and overlap nowhere."""

from typing import LiteralString

from service.verify.snapshot import IN_PART

# Every statement returns the columns check, organization_id, appointment_id, revision, expected,
# stored.

# The columns that the history and the rows of appointments have. The last three are
# empty in the rows of further resources.
_COLUMNS = (
    "resource_id",
    "start_time",
    "end_time",
    "created_at",
    "updated_at",
    "hold_until",
    "state",
    "version",
    "revision",
    "additional_resource_ids",
    "title",
    "attributes",
)
# Not shown in findings.
_PRIVATE = ("title", "attributes")


def _row(alias: LiteralString) -> LiteralString:
    return ", ".join(f"{alias}.{column}" for column in _COLUMNS)


def _shown(alias: LiteralString) -> LiteralString:
    """Return the columns that differ, with the values of one side."""
    parts = [
        f"CASE WHEN (e).{column} IS DISTINCT FROM (s).{column} THEN "
        + (
            f"CASE WHEN ({alias}).{column} = '' THEN 'no {column}' ELSE 'another {column}' END"
            if column in _PRIVATE
            else f"'{column} ' || coalesce(({alias}).{column}::text, 'none')"
        )
        + " END"
        for column in _COLUMNS
    ]
    return f"concat_ws(', ', {', '.join(parts)})"


# The last entry of each appointment makes its row 0, and a row for each further resource. Two
# columns are not in the history. If the caller did not send updated_at, it is when the content was
# recorded. Only a cancel stores cancel_updated_at, and none that is older than the content.
ROWS: LiteralString = f"""
    WITH last AS (
        SELECT DISTINCT ON (organization_id, appointment_id)
            organization_id, appointment_id, change, recorded_at, {", ".join(_COLUMNS[:-1])},
            attributes::text AS attributes
        FROM appointment_history
        WHERE {IN_PART}
        ORDER BY organization_id, appointment_id, revision DESC
    ),
    e AS (
        SELECT
            organization_id, appointment_id, 0 AS ordinal, change, recorded_at,
            {", ".join(_COLUMNS)}
        FROM last
        UNION ALL
        SELECT
            organization_id, appointment_id, more.ordinal, change, recorded_at, more.resource_id,
            {", ".join(_COLUMNS[1:-3])}, NULL, '', '{{}}'
        FROM last
        CROSS JOIN unnest(additional_resource_ids) WITH ORDINALITY AS more (resource_id, ordinal)
    ),
    s AS (
        SELECT
            organization_id, appointment_id, ordinal::bigint AS ordinal,
            {", ".join(_COLUMNS[:-1])}, attributes::text AS attributes,
            updated_at_given, cancel_updated_at
        FROM appointments
        WHERE {IN_PART}
    ),
    judged AS (
        SELECT
            e, s,
            ROW(e.ordinal, {_row("e")}) IS DISTINCT FROM ROW(s.ordinal, {_row("s")}) AS wrong_row,
            s.ordinal = 0 AND NOT s.updated_at_given AND s.updated_at <> CASE
                WHEN e.change <> ALL (%(keeping)s::text []) THEN e.recorded_at
                ELSE (
                    SELECT content.recorded_at
                    FROM appointment_history content
                    WHERE content.organization_id = s.organization_id
                        AND content.appointment_id = s.appointment_id
                        AND content.change <> ALL (%(keeping)s::text [])
                    ORDER BY content.revision DESC
                    LIMIT 1
                )
            END AS wrong_update,
            s.cancel_updated_at IS NOT NULL AND (
                s.ordinal > 0 OR s.state <> 'CANCELLED'
                OR s.updated_at_given AND s.cancel_updated_at < s.updated_at
            ) AS wrong_cancel,
            s.ordinal > 0 AND s.updated_at_given AS wrong_given
        FROM e
        FULL JOIN s
            ON s.organization_id = e.organization_id
                AND s.appointment_id = e.appointment_id
                AND s.ordinal = e.ordinal
    )
    SELECT
        fault.name,
        coalesce((e).organization_id, (s).organization_id),
        coalesce((e).appointment_id, (s).appointment_id),
        coalesce((e).revision, (s).revision),
        fault.expected,
        fault.stored
    FROM judged
    CROSS JOIN LATERAL (VALUES
        (
            'row', wrong_row,
            concat(
                'row ', coalesce((e).ordinal, (s).ordinal), ' with ',
                CASE WHEN (e).ordinal IS NULL THEN 'nothing: no change made it'
                    WHEN (s).ordinal IS NULL
                        THEN 'resource_id ' || (e).resource_id || ', state ' || (e).state
                    ELSE {_shown("e")} END
            ),
            CASE WHEN (s).ordinal IS NULL THEN 'no row'
                WHEN (e).ordinal IS NULL
                    THEN 'resource_id ' || (s).resource_id || ', state ' || (s).state
                ELSE {_shown("s")} END
        ),
        (
            'bookkeeping', wrong_update,
            'updated_at of the change of the content, as the caller sent none',
            'updated_at ' || (s).updated_at
        ),
        (
            'bookkeeping', wrong_cancel,
            'cancel_updated_at only of a cancelled appointment, and not before its updated_at',
            'cancel_updated_at ' || (s).cancel_updated_at
        ),
        (
            'bookkeeping', wrong_given,
            'no updated_at_given in the row of a further resource',
            'row ' || (s).ordinal || ' with updated_at_given'
        )
    ) AS fault (name, found, expected, stored)
    WHERE (wrong_row OR wrong_update OR wrong_cancel OR wrong_given) AND fault.found
"""

# Of the rows that start before one, the one that ends last overlaps it if any does.
OVERLAPS: LiteralString = f"""
    WITH occupied AS (
        SELECT
            organization_id, appointment_id, resource_id, revision, start_time, end_time,
            max(end_time) OVER (
                PARTITION BY organization_id, resource_id
                ORDER BY start_time, appointment_id, ordinal
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS taken_until
        FROM appointments
        WHERE state IN ('ACTIVE', 'HELD') AND {IN_PART}
    )
    SELECT
        'overlap', mine.organization_id, mine.appointment_id, mine.revision,
        'nothing else on ' || to_json(mine.resource_id) || ' from ' || mine.start_time
            || ' to ' || mine.end_time,
        'appointment ' || to_json(other.appointment_id) || ' from ' || other.start_time
            || ' to ' || other.end_time
    FROM occupied mine
    CROSS JOIN LATERAL (
        SELECT a.appointment_id, a.start_time, a.end_time
        FROM appointments a
        WHERE a.organization_id = mine.organization_id
            AND a.resource_id = mine.resource_id
            AND a.state IN ('ACTIVE', 'HELD')
            AND a.start_time <= mine.start_time
            AND a.end_time = mine.taken_until
        ORDER BY a.appointment_id = mine.appointment_id, a.appointment_id
        LIMIT 1
    ) AS other
    WHERE mine.taken_until > mine.start_time
"""
