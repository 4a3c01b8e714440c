"""The columns of an appointment and of its history, in the order in which rows are read.

A new column of an appointment is added to `_COLUMNS`, `appointment` and `Stored.appointment`, to
`rpc/appointment_encoding.py`, to `domain.Appointment`, and in SQL to the two tables and to
`apply_writes`, whose result has the table's row type.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, LiteralString, NamedTuple, overload

from service.domain import Appointment, Change, HistoryEntry, State, etag_of
from service.times import POSTGRES_EPOCH, time_at

Row = tuple[Any, ...]

# By the texts of rows, and of raw rows.
_STATES = {text: state for state in State for text in (state.value, state.value.encode())}

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
        hold_until=row[9],
        state=_state(row, clock),
        version=row[11],
        revision=row[12],
        epoch=epoch,
    )


class Stored(NamedTuple):
    """A stored appointment as a raw row with the columns APPOINTMENT, and what that does not say.

    It is sent on without becoming an Appointment (`service/rpc/appointment_encoding.py`).
    """

    organization_id: str
    row: Row
    state: State
    epoch: str

    @property
    def etag(self) -> str:
        return etag_of(self.row[12], self.state, self.epoch)

    @property
    def revision(self) -> int:
        revision: int = self.row[12]
        return revision

    @property
    def appointment(self) -> Appointment:
        row = self.row
        return Appointment(
            organization_id=self.organization_id,
            id=row[0].decode(),
            resource_id=row[1].decode(),
            additional_resource_ids=tuple(one.decode() for one in row[2] or ()),
            start=time_of(row[3]),
            end=time_of(row[4]),
            title=row[5].decode(),
            attributes=row[6].decode(),
            created_at=time_of(row[7]),
            updated_at=time_of(row[8]),
            hold_until=time_of(row[9]),
            state=self.state,
            version=row[11],
            revision=row[12],
            epoch=self.epoch,
        )


def stored(
    organization_id: str, found: Iterable[Row], clock: int | None, *, epoch: str
) -> list[Stored]:
    """Take raw rows, read in an epoch of the database. `clock` is that of `appointment`, raw."""
    return [Stored(organization_id, row, _state(row, clock), epoch) for row in found]


def _state(row: Row, clock: datetime | int | None) -> State:
    """Return the state of a row, or of a raw row with a raw clock."""
    state = _STATES[row[10]]
    hold_until = row[9]
    # Few have a hold, and a member of an enum takes long to name.
    if hold_until is None or clock is None:
        return state
    return State.EXPIRED if state is State.HELD and hold_until <= clock else state


def first_expiry_of(found: Iterable[Stored]) -> datetime | None:
    """Return when the first of the held appointments expires, None if none is held."""
    held = State.HELD
    return time_of(min([each.row[9] for each in found if each.state is held], default=None))


@overload
def time_of(raw: int) -> datetime: ...
@overload
def time_of(raw: None) -> None: ...
def time_of(raw: int | None) -> datetime | None:
    """Convert a raw time."""
    return None if raw is None else time_at(raw + POSTGRES_EPOCH)


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
