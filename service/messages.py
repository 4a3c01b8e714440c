"""Converts between the messages of the API and the domain."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import orjson
from appointments.v1 import appointment_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from public_json.rendering import MessageRenderer
from service import rules
from service.domain import (
    DEFAULT_ORGANIZATION,
    Appointment,
    Change,
    ChangeFilter,
    Conflict,
    HistoryEntry,
    Outcome,
    State,
    TimeRange,
)
from service.errors import InvalidFields
from service.times import EPOCH

Item = TypeVar("Item")
Converted = TypeVar("Converted")

# The service expires holds itself, so no caller gets the outcome EXPIRED.
OUTCOMES: dict[Outcome, pb.Outcome.ValueType] = {
    outcome: pb.Outcome.Value(outcome) for outcome in Outcome if outcome is not Outcome.EXPIRED
}
STATES = {state: pb.Appointment.State.Value(state) for state in State}
CHANGES = {change: pb.HistoryEntry.Change.Value(change) for change in Change}
_CHANGES_BY_NUMBER = {number: change for change, number in CHANGES.items()}
_ENTRIES = MessageRenderer(pb.HistoryEntry.DESCRIPTOR)


def organization_of(message: Any) -> str:  # noqa: ANN401  # every request has the field
    """Return the organization of a request or an appointment, or the default."""
    return message.organization_id or DEFAULT_ORGANIZATION


def check(request: Any, *times: str) -> list[datetime | None]:  # noqa: ANN401  # any request
    """Check a request's fields and return the fields `times`. Raises InvalidFields."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    read = [rules.read_time(request, name, "", violations) for name in times]
    if violations:
        raise InvalidFields(violations)
    return read


def change_filter(
    message: Any,  # noqa: ANN401  # every message with both fields
    prefix: str,
    violations: rules.Violations,
) -> ChangeFilter:
    """Read the fields `resource_id` and `changes`, and append unknown kinds of changes."""
    violations.extend(
        (f"{prefix}changes[{index}]", f"must be one of {', '.join(CHANGES)}")
        for index, number in enumerate(message.changes)
        if number not in _CHANGES_BY_NUMBER
    )
    return ChangeFilter(
        resource_id=message.resource_id if message.HasField("resource_id") else None,
        changes=frozenset(
            _CHANGES_BY_NUMBER[number] for number in message.changes if number in _CHANGES_BY_NUMBER
        ),
    )


def check_filtered(request: Any) -> ChangeFilter:  # noqa: ANN401  # any request with a filter
    """Check a request's fields and return its filter. Raises InvalidFields."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    selected = change_filter(request, "", violations)
    if violations:
        raise InvalidFields(violations)
    return selected


def appointment(stored: Appointment) -> pb.Appointment:
    message = pb.Appointment(
        organization_id=stored.organization_id,
        resource_id=stored.resource_id,
        id=stored.id,
        title=stored.title,
        state=STATES[stored.state],
        version=stored.version,
        revision=stored.revision,
        etag=stored.etag,
    )
    _set_time(message.start, stored.start)
    _set_time(message.end, stored.end)
    _set_time(message.created_at, stored.created_at)
    _set_time(message.updated_at, stored.updated_at)
    if stored.additional_resource_ids:
        message.additional_resource_ids.extend(stored.additional_resource_ids)
    if stored.hold_until is not None:
        _set_time(message.hold_until, stored.hold_until)
    message.attributes.SetInParent()
    if stored.attributes != "{}":
        message.attributes.update(orjson.loads(stored.attributes))
    return message


def history_entry(entry: HistoryEntry) -> pb.HistoryEntry:
    return pb.HistoryEntry(
        revision=entry.revision,
        change=CHANGES[entry.change],
        recorded_at=timestamp(entry.recorded_at),
        actor=entry.actor,
        idempotency_key=entry.idempotency_key or "",
        appointment=appointment(entry.appointment),
    )


def change_type(entry: HistoryEntry) -> str:
    """Return the public name of a kind of change, such as `appointment.created`."""
    return f"appointment.{entry.change.value.lower()}"


def history_json(entry: HistoryEntry) -> dict[str, Any]:
    """Return an entry in its REST form, ready for `orjson.dumps`."""
    return _ENTRIES.render(history_entry(entry))


def fitting(
    items: Sequence[Item],
    limit: int,
    convert: Callable[[Item], Converted],
    *,
    size_of: Callable[[Converted], int],
    max_bytes: int,
) -> list[Converted]:
    """Convert items up to a number and a size in bytes. The first item always fits."""
    converted: list[Converted] = []
    size = 0
    for item in items[:limit]:
        one = convert(item)
        size += size_of(one)
        if converted and size > max_bytes:
            break
        converted.append(one)
    return converted


def conflict(found: Conflict) -> pb.TimeRangeConflict.Conflict:
    return pb.TimeRangeConflict.Conflict(
        id=found.id,
        start=timestamp(found.start),
        end=timestamp(found.end),
        version=found.version,
        resource_ids=found.resource_ids,
        index=found.index,
    )


def time_range(found: TimeRange) -> pb.TimeRange:
    return pb.TimeRange(start=timestamp(found.start), end=timestamp(found.end))


def timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    _set_time(timestamp, time)
    return timestamp


def _set_time(timestamp: Timestamp, time: datetime) -> None:
    """Convert without loss, at a third of the cost of FromDatetime()."""
    difference = time - EPOCH
    timestamp.seconds = difference.days * 86_400 + difference.seconds
    timestamp.nanos = difference.microseconds * 1000
