"""Strict conversion of JSON objects to messages.

All errors are collected with their paths, so that a caller can fix all of them at once. Only
types are checked here; the service checks the rules of the fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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

_NULL = "must not be null; leave it out"
# A caller's numeric key is read as its decimal text, for this field only.
INTEGER_AS_TEXT = frozenset({"appointments.v1.Appointment.id"})


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    read: Read
    ignored: bool
    """Only the service sets it: what a caller sends back is read and dropped (AIP-203)."""


class MessageReader:
    """Reads JSON objects into messages of one type.

    Names are the fields' JSON names only; an unknown one is an error, and so are the
    names of the fields of `without`, which come by another way. Types of fields that no
    message here uses (maps, bytes, floating point) are refused when the reader is made.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        without: frozenset[str] = frozenset(),
        places: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the type; `places` tells where names stand that are not known here."""
        self._new: Callable[..., Message] = GetMessageClass(descriptor)
        self._fields: Mapping[str, _Field] = {
            field.json_name: _Field(
                name=field.name, read=_read_of(field), ignored=is_output_only(field)
            )
            for field in descriptor.fields
            if field.name not in without
        }
        self._json_names: Mapping[str, str] = {
            field.name: field.json_name
            for field in descriptor.fields
            if field.name != field.json_name
        }
        self._places = places or {}

    def read(self, value: Any, path: str, errors: Errors) -> Message | None:  # noqa: ANN401
        """Build the message; None, and at least one more error, if that cannot be."""
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
                errors.append(FieldError(where, _NULL))
            else:
                read = field.read(item, where, errors)
                if not field.ignored:
                    fields[field.name] = read
        return self._new(**fields) if len(errors) == before else None

    def _unknown(self, json_name: str) -> str:
        if known_as := self._json_names.get(json_name):
            return f"is not a known field; write {known_as}"
        if place := self._places.get(json_name):
            return f"is not a known field here; it belongs {place}"
        return "is not a known field"


def nested_paths(descriptor: Descriptor) -> dict[str, str]:
    """Give the paths of the fields of the messages inside a message, by their JSON names.

    Of several with one name the one that is least deep; not those at the top.
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
    """Tell whether only the service sets this field."""
    behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.OUTPUT_ONLY in behavior


def _read_of(field: FieldDescriptor) -> Read:
    one = field_reader(field)
    return repeated(one) if field.is_repeated else one


def field_reader(field: FieldDescriptor) -> Read:
    """Return the reader of a value of this field, one of them if it is repeated."""
    if field.full_name in INTEGER_AS_TEXT:
        return read_text_or_integer
    if field.message_type is not None:
        known = WELL_KNOWN.get(field.message_type.full_name)
        return known or MessageReader(field.message_type).read
    if field.enum_type is not None:
        return enum_reader(field.enum_type)
    read = SCALARS.get(field.type)
    if read is None:
        raise NotImplementedError(f"{field.full_name}: no reading of this type of field")
    return read
