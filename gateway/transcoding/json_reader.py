"""Strict conversion of JSON objects to messages.

All errors are collected with their paths, so that a caller can fix all of them at once. Only
types are checked here; the service checks the rules of the fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appointments.v1 import rules_pb2
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.http.problems import Errors, FieldError
from gateway.transcoding.values import (
    SCALARS,
    WELL_KNOWN,
    Read,
    enum_reader,
    printable,
    read_text_or_integer,
    repeated,
)

# This field alone also accepts an integer, which is converted to its decimal text.
INTEGER_AS_TEXT = frozenset({"appointments.v1.Appointment.id"})


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    read: Read
    required: bool
    ignored: bool
    """OUTPUT_ONLY: a value that a caller sends back is checked and ignored (AIP-203)."""


class MessageReader:
    """Converts JSON objects to messages of one type.

    Only JSON names of fields are accepted. Unknown names are errors, and so are the fields in
    `without`, which are set by other parts of the request. The constructor raises
    NotImplementedError for field types that no message uses (maps, bytes, floating point).
    """

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        without: frozenset[str] = frozenset(),
        locations: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the type. `locations` says where names belong that are unknown here."""
        self._new: Callable[..., Message] = GetMessageClass(descriptor)
        self._fields: Mapping[str, _Field] = {
            field.json_name: _Field(
                name=field.name,
                read=_read_of(field),
                required=_behaves(field, field_behavior_pb2.REQUIRED),
                ignored=is_output_only(field),
            )
            for field in descriptor.fields
            if field.name not in without
        }
        self._json_names: Mapping[str, str] = {
            field.name: field.json_name
            for field in descriptor.fields
            if field.name != field.json_name
        }
        self._locations = locations or {}

    def read(self, value: Any, path: str, errors: Errors) -> Message | None:  # noqa: ANN401
        """Build the message. Returns None and appends errors if the value is invalid."""
        if type(value) is not dict:
            errors.append(FieldError(path, "must be an object"))
            return None
        before = len(errors)
        fields: dict[str, Any] = {}
        for json_name, item in value.items():
            where = f"{path}.{json_name}" if path else json_name
            field = self._fields.get(json_name)
            if field is None:
                errors.append(FieldError(printable(where), self._unknown(json_name)))
            elif item is None:
                leave_out = "" if field.required else "; leave it out"
                errors.append(FieldError(where, f"must not be null{leave_out}"))
            else:
                read = field.read(item, where, errors)
                if not field.ignored:
                    fields[field.name] = read
        return self._new(**fields) if len(errors) == before else None

    def _unknown(self, json_name: str) -> str:
        if known_as := self._json_names.get(json_name):
            return f"is not a known field; write {known_as}"
        if location := self._locations.get(json_name):
            return f"is not a known field here; it belongs {location}"
        return "is not a known field"


def nested_paths(descriptor: Descriptor) -> dict[str, str]:
    """Return the paths of the fields of nested messages, by their JSON names.

    Of several fields with one name the shallowest is returned. Fields at the top level are
    not included.
    """
    paths: dict[str, str] = {}
    level = {"": descriptor}
    while level:
        below: dict[str, Descriptor] = {}
        for path, message in level.items():
            for field in message.fields:
                where = f"{path}{field.json_name}"
                if path:
                    paths.setdefault(field.json_name, where)
                inner = field.message_type
                if inner is not None and inner.full_name not in WELL_KNOWN:
                    below[f"{where}[]." if field.is_repeated else f"{where}."] = inner
        level = below
    return {
        name: path
        for name, path in paths.items()
        if name not in descriptor.fields_by_camelcase_name
    }


def is_output_only(field: FieldDescriptor) -> bool:
    """Return whether only the service sets this field (AIP-203)."""
    return _behaves(field, field_behavior_pb2.OUTPUT_ONLY)


def _behaves(field: FieldDescriptor, behavior: int) -> bool:
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _read_of(field: FieldDescriptor) -> Read:
    one = field_reader(field)
    if not field.is_repeated:
        return one
    return repeated(one, most=field.GetOptions().Extensions[rules_pb2.rules].max_items)


def field_reader(field: FieldDescriptor) -> Read:
    """Return the reader of a value of this field, one of them if it is repeated."""
    if field.full_name in INTEGER_AS_TEXT:
        return read_text_or_integer
    if field.message_type is not None:
        known = WELL_KNOWN.get(field.message_type.full_name)
        if known is not None:
            return known
        locations = {
            name: f"in {field.json_name}{'[]' if field.is_repeated else ''}.{path}"
            for name, path in nested_paths(field.message_type).items()
        }
        return MessageReader(field.message_type, locations=locations).read
    if field.enum_type is not None:
        return enum_reader(field.enum_type)
    read = SCALARS.get(field.type)
    if read is None:
        raise NotImplementedError(f"{field.full_name}: no reading of this type of field")
    return read
