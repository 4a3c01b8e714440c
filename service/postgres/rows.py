"""The columns of an appointment and of its history, in the order in which rows are read.

A new column of an appointment is added to `_COLUMNS` and `appointment`, to `domain.Appointment`,
and in SQL to the two tables and to `apply_writes`, whose result has the table's row type.
"""

from typing import Any, LiteralString

from service.domain import Appointment, HistoryEntry, Outcome, State

Row = tuple[Any, ...]

_STATES = {state.value: state for state in State}

_COLUMNS: tuple[LiteralString, ...] = (
    "appointment_id",
    "resource_id",
    "start_time",
    "end_time",
    "title",
    "attributes::text",
    "created_at",
    "updated_at",
    "state",
    "version",
    "revision",
)

APPOINTMENT: LiteralString = ", ".join(_COLUMNS)

# The same columns, from a column `appointment` of the table's row type.
APPOINTMENT_OF_ROW: LiteralString = ", ".join(f"(appointment).{column}" for column in _COLUMNS)

HISTORY_ENTRY: LiteralString = f"change, recorded_at, actor, idempotency_key, {APPOINTMENT}"


def appointment(organization_id: str, row: Row) -> Appointment:
    """Convert a row that begins with the columns APPOINTMENT."""
    return Appointment(
        organization_id=organization_id,
        id=row[0],
        resource_id=row[1],
        start=row[2],
        end=row[3],
        title=row[4],
        attributes=row[5],
        created_at=row[6],
        updated_at=row[7],
        state=_STATES[row[8]],
        version=row[9],
        revision=row[10],
    )


def history_entry(organization_id: str, row: Row) -> HistoryEntry:
    """Convert a row that begins with the columns HISTORY_ENTRY."""
    found = appointment(organization_id, row[4:])
    return HistoryEntry(
        appointment=found,
        revision=found.revision,
        change=Outcome(row[0]),
        recorded_at=row[1],
        actor=row[2],
        idempotency_key=row[3],
    )
