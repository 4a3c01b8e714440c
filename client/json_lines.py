"""JSON Lines: an appointment on each line, with the names of the API's JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, tzinfo
from typing import Any, BinaryIO, Literal, NoReturn

from appointments.v1.appointment_pb2 import Appointment
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from client.entries import (
    Entry,
    Item,
    Items,
    Skipped,
    UnreadableError,
    content_id,
    read_time,
    set_time,
)
from client.lines import TOO_LONG, numbered_lines

_Times = Literal["start", "end", "created_at", "updated_at", "hold_until"]
TIMES: Mapping[str, _Times] = {
    "start": "start",
    "end": "end",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "holdUntil": "hold_until",
}
# Of the organization that the file came from.
IGNORED = frozenset({"organizationId", "version", "revision", "etag"})
STATES = {"ACTIVE": False, "HELD": False, "CANCELLED": True, "EXPIRED": True}


def read_json_lines(file: BinaryIO, zone: tzinfo | None) -> Items:
    """Read a file that `export` wrote, or anything with the same names."""
    for number, line in numbered_lines(file):
        if line is None:
            yield Skipped(line=number, kind="UNREADABLE", detail=TOO_LONG)
        elif line.strip():
            yield read_line(number, line, zone)


def read_line(number: int, line: bytes, zone: tzinfo | None) -> Item:
    """Read one line."""
    try:
        values = json.loads(line.decode(), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        detail = f"byte {error.start + 1} is not UTF-8"
        return Skipped(line=number, kind="UNREADABLE", detail=detail)
    except (ValueError, RecursionError) as error:
        return Skipped(line=number, kind="UNREADABLE", detail=f"not JSON: {error}")
    if not isinstance(values, dict):
        return Skipped(line=number, kind="UNREADABLE", detail="not a JSON object")
    return read_values(number, values, zone)


def read_values(number: int, values: Mapping[str, Any], zone: tzinfo | None) -> Item:
    """Read an appointment from values by their JSON names."""
    try:
        appointment, cancelled = _appointment(values, zone)
    # What a message does not take, such as half of a surrogate pair.
    except (UnreadableError, TypeError, ValueError, OverflowError, RecursionError) as error:
        given = values.get("id")
        return Skipped(
            line=number,
            kind="UNREADABLE",
            detail=str(error).splitlines()[0] if str(error) else type(error).__name__,
            id=given if isinstance(given, str) else "",
        )
    return Entry(line=number, appointment=appointment, cancelled=cancelled)


def _appointment(values: Mapping[str, Any], zone: tzinfo | None) -> tuple[Appointment, bool]:
    appointment = Appointment()
    cancelled = False
    for name, value in values.items():
        if value is None or name in IGNORED:
            continue
        if name in TIMES:
            set_time(getattr(appointment, TIMES[name]), _named(name, read_time, value, zone))
        elif name in _SETTERS:
            _SETTERS[name](appointment, value)
        elif name == "state":
            if value not in STATES:
                raise UnreadableError(f"state {value!r} is unknown")
            cancelled = STATES[value]
        else:
            raise UnreadableError(f"field {name!r} is unknown")
    for name in ("start", "end"):
        if values.get(name) is None:
            raise UnreadableError(f"{name} is missing")
    if not appointment.HasField("id"):
        appointment.id = content_id(appointment)
    return appointment, cancelled


def _named(name: str, read: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    try:
        return read(*arguments)
    except UnreadableError as error:
        raise UnreadableError(f"{name}: {error}") from None


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UnreadableError(f"{name} is not a string")
    return value


def _set_id(appointment: Appointment, value: object) -> None:
    # As through REST, an integer is read as its decimal text.
    number = isinstance(value, int) and not isinstance(value, bool)
    appointment.id = str(value) if number else _text("id", value)


def _set_resources(appointment: Appointment, value: object) -> None:
    if not isinstance(value, list):
        raise UnreadableError("additionalResourceIds is not a list")
    appointment.additional_resource_ids.extend(
        _text("additionalResourceIds", item) for item in value
    )


def _set_attributes(appointment: Appointment, value: object) -> None:
    if not isinstance(value, dict):
        raise UnreadableError("attributes is not an object")
    appointment.attributes.SetInParent()
    appointment.attributes.update(value)


_SETTERS: Mapping[str, Callable[[Appointment, Any], None]] = {
    "id": _set_id,
    "resourceId": lambda to, value: setattr(to, "resource_id", _text("resourceId", value)),
    "title": lambda to, value: setattr(to, "title", _text("title", value)),
    "additionalResourceIds": _set_resources,
    "attributes": _set_attributes,
}
FIELDS = (*_SETTERS, *TIMES, "state")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def values_of(appointment: Appointment) -> dict[str, Any]:
    """Return what is imported again: without revision, version and etag.

    A firm appointment has no state, and what is empty is left out.
    """
    values: dict[str, Any] = {"id": appointment.id}
    if appointment.resource_id:
        values["resourceId"] = appointment.resource_id
    if appointment.additional_resource_ids:
        values["additionalResourceIds"] = list(appointment.additional_resource_ids)
    values["start"] = time_text(appointment.start)
    values["end"] = time_text(appointment.end)
    if appointment.title:
        values["title"] = appointment.title
    if appointment.attributes.fields:
        values["attributes"] = _sorted(json_format.MessageToDict(appointment.attributes))
    for name in ("createdAt", "updatedAt", "holdUntil"):
        if appointment.HasField(TIMES[name]):
            values[name] = time_text(getattr(appointment, TIMES[name]))
    if appointment.state != Appointment.ACTIVE:
        values["state"] = Appointment.State.Name(appointment.state)
    return values


def _sorted(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Sort the members: a Struct has no order, and the same content should be the same text."""
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def time_text(timestamp: Timestamp) -> str:
    """Return a time as RFC 3339 in UTC."""
    return timestamp.ToDatetime(UTC).isoformat().replace("+00:00", "Z")


def json_lines(appointments: Iterable[Appointment]) -> Iterator[str]:
    """Write appointments, each on a line."""
    for appointment in appointments:
        yield json.dumps(values_of(appointment), ensure_ascii=False, separators=(",", ":")) + "\n"
