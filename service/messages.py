"""Converts between the messages of the API and the domain."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from public_json.rendering import MessageRenderer
from service import rules
from service.domain import (
    DEFAULT_ORGANIZATION,
    Appointment,
    Cancel,
    Conflict,
    HistoryEntry,
    Outcome,
    State,
    Upsert,
    expected_revision,
    new_id,
)
from service.errors import InvalidFields

Item = TypeVar("Item")
ItemMessage = TypeVar("ItemMessage", bound=Message)

OUTCOMES = {outcome: pb.Outcome.Value(outcome) for outcome in Outcome}
_STATES = {state: pb.Appointment.State.Value(state) for state in State}
_CHANGES = {
    change: pb.HistoryEntry.Change.Value(change)
    for change in (Outcome.CREATED, Outcome.UPDATED, Outcome.CANCELLED)
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENTRIES = MessageRenderer(pb.HistoryEntry.DESCRIPTOR)


def organization_of(message: Any) -> str:  # noqa: ANN401  # every request has the field
    """Return the organization of a request or an appointment, or the default."""
    return message.organization_id or DEFAULT_ORGANIZATION


def upsert(
    request: rpc.UpsertAppointmentRequest | rpc.BatchUpsertAppointmentsRequest.Item,
    *,
    validate_only: bool,
    actor: str,
) -> Upsert:
    """Convert an upsert. Raises InvalidFields, naming every invalid field."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    if not request.HasField("appointment"):
        violations.append(("appointment", "is required"))
        raise InvalidFields(violations)
    wanted = request.appointment
    prefix = "appointment."
    rules.check_fields(wanted, prefix, violations)
    start = rules.read_time(wanted, "start", prefix, violations, required=True)
    end = rules.read_time(wanted, "end", prefix, violations, required=True)
    rules.check_range(start, end, prefix, violations)
    attributes = rules.read_attributes(wanted.attributes, prefix + "attributes", violations)
    created_at = rules.read_time(wanted, "created_at", prefix, violations)
    updated_at = rules.read_time(wanted, "updated_at", prefix, violations)
    if request.etag and wanted.etag and request.etag != wanted.etag:
        violations.append(("etag", "must be the same as the appointment's etag, or left out there"))
    if violations or start is None or end is None:
        raise InvalidFields(violations)
    return Upsert(
        id=wanted.id or new_id(),
        id_given=bool(wanted.id),
        resource_id=wanted.resource_id,
        start=start,
        end=end,
        title=wanted.title,
        attributes=attributes,
        created_at=created_at,
        updated_at=updated_at,
        expected_revision=expected_revision(request.etag or wanted.etag),
        create_only=request.create_only,
        idempotency_key=request.idempotency_key or None,
        validate_only=validate_only,
        actor=actor,
    )


def cancel(request: rpc.CancelAppointmentRequest, *, actor: str) -> Cancel:
    """Convert a cancel. Raises InvalidFields, naming every invalid field."""
    [updated_at] = check(request, "updated_at")
    return Cancel(
        id=request.id,
        updated_at=updated_at,
        expected_revision=expected_revision(request.etag),
        idempotency_key=request.idempotency_key or None,
        validate_only=request.validate_only,
        actor=actor,
    )


def check(request: Any, *times: str) -> list[datetime | None]:  # noqa: ANN401  # any request
    """Check a request's fields and return the fields `times`. Raises InvalidFields."""
    violations: rules.Violations = []
    rules.check_fields(request, "", violations)
    read = [rules.read_time(request, name, "", violations) for name in times]
    if violations:
        raise InvalidFields(violations)
    return read


def appointment(stored: Appointment) -> pb.Appointment:
    message = pb.Appointment(
        organization_id=stored.organization_id,
        resource_id=stored.resource_id,
        id=stored.id,
        title=stored.title,
        state=_STATES[stored.state],
        version=stored.version,
        revision=stored.revision,
        etag=stored.etag,
    )
    _set_time(message.start, stored.start)
    _set_time(message.end, stored.end)
    _set_time(message.created_at, stored.created_at)
    _set_time(message.updated_at, stored.updated_at)
    message.attributes.SetInParent()
    if stored.attributes != "{}":
        message.attributes.update(orjson.loads(stored.attributes))
    return message


def history_entry(entry: HistoryEntry) -> pb.HistoryEntry:
    return pb.HistoryEntry(
        revision=entry.revision,
        change=_CHANGES[entry.change],
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
    items: Sequence[Item], limit: int, convert: Callable[[Item], ItemMessage], *, max_bytes: int
) -> list[ItemMessage]:
    """Convert items up to a number and a size in bytes. The first item always fits."""
    converted: list[ItemMessage] = []
    size = 0
    for item in items[:limit]:
        message = convert(item)
        size += message.ByteSize()
        if converted and size > max_bytes:
            break
        converted.append(message)
    return converted


def conflict(found: Conflict) -> pb.TimeRangeConflict.Conflict:
    return pb.TimeRangeConflict.Conflict(
        id=found.id,
        start=timestamp(found.start),
        end=timestamp(found.end),
        version=found.version,
    )


def timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    _set_time(timestamp, time)
    return timestamp


def _set_time(timestamp: Timestamp, time: datetime) -> None:
    """Convert without loss, at a third of the cost of FromDatetime()."""
    difference = time - _EPOCH
    timestamp.seconds = difference.days * 86_400 + difference.seconds
    timestamp.nanos = difference.microseconds * 1000
