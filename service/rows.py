"""The columns of an appointment, in the order in which rows are read."""

from typing import Any, LiteralString

from service.domain import Appointment, State

Row = tuple[Any, ...]

_STATES = {state.value: state for state in State}

APPOINTMENT: LiteralString = """
    appointment_id, resource_id, start_time, end_time, title, attributes::text,
    created_at, updated_at, state, version, revision
"""


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
