"""The columns of an appointment and of its history, in the order in which rows are read."""

from typing import Any, LiteralString

from service.domain import Appointment, HistoryEntry, Outcome, State

Row = tuple[Any, ...]

_STATES = {state.value: state for state in State}

APPOINTMENT: LiteralString = """
    appointment_id, resource_id, start_time, end_time, title, attributes::text,
    created_at, updated_at, state, version, revision
"""

HISTORY_ENTRY: LiteralString = f"{APPOINTMENT}, change, recorded_at, actor, idempotency_key"


def appointment(organization_id: str, row: Row) -> Appointment:
    """Read a row that begins with the columns of an appointment."""
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
    """Read a row that begins with the columns of an entry."""
    return HistoryEntry(
        appointment=appointment(organization_id, row),
        revision=row[10],
        change=Outcome(row[11]),
        recorded_at=row[12],
        actor=row[13],
        idempotency_key=row[14],
    )
