"""The columns of an appointment and of its history, in the order in which rows are read.

A new column of an appointment is added to `_COLUMNS` and `appointment`, to `domain.Appointment`,
and in SQL to the two tables and to `apply_writes`, whose result has the table's row type.
"""

from datetime import datetime
from typing import Any, LiteralString

from service.domain import Appointment, Change, HistoryEntry, State

Row = tuple[Any, ...]

_STATES = {state.value: state for state in State}

_COLUMNS: tuple[LiteralString, ...] = (
    "appointment_id",
    "resource_id",
    "additional_resource_ids",
    "start_time",
    "end_time",
    "title",
    "attributes::text",
    "created_at",
    "updated_at",
    "hold_until",
    "state",
    "version",
    "revision",
)

APPOINTMENT: LiteralString = ", ".join(_COLUMNS)

# The same columns, from a column `appointment` of the table's row type.
APPOINTMENT_OF_ROW: LiteralString = ", ".join(f"(appointment).{column}" for column in _COLUMNS)

HISTORY_ENTRY: LiteralString = (
    f"change, recorded_at, actor, idempotency_key, released_resource_ids, {APPOINTMENT}"
)


# Whether the row of an appointment occupies its range. `organization` is what `ReadStore` joins
# with; its clock is the time of the state that is read.
OCCUPIES: LiteralString = (
    "state IN ('ACTIVE', 'HELD') AND (hold_until IS NULL OR hold_until > organization.clock)"
)


def appointment(
    organization_id: str, row: Row, clock: datetime | None = None, *, epoch: str
) -> Appointment:
    """Convert a row that begins with the columns APPOINTMENT, read in an epoch of the database.

    `clock` is the time of the state: a hold that ended by then has expired. None keeps the
    state of the row.
    """
    state, hold_until = _STATES[row[10]], row[9]
    if state is State.HELD and clock is not None and hold_until <= clock:
        state = State.EXPIRED
    return Appointment(
        organization_id=organization_id,
        id=row[0],
        resource_id=row[1],
        additional_resource_ids=tuple(row[2] or ()),
        start=row[3],
        end=row[4],
        title=row[5],
        attributes=row[6],
        created_at=row[7],
        updated_at=row[8],
        hold_until=hold_until,
        state=state,
        version=row[11],
        revision=row[12],
        epoch=epoch,
    )


def history_entry(organization_id: str, row: Row, *, epoch: str) -> HistoryEntry:
    """Convert a row that begins with the columns HISTORY_ENTRY."""
    found = appointment(organization_id, row[5:], epoch=epoch)
    return HistoryEntry(
        appointment=found,
        revision=found.revision,
        change=Change(row[0]),
        recorded_at=row[1],
        actor=row[2],
        idempotency_key=row[3],
        released_resource_ids=tuple(row[4] or ()),
    )
