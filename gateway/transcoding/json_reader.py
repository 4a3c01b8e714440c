"""JSON values and query parameters to messages, strictly.

Every fault is collected with its path instead of ending at the first, so that a caller
mends all of them at once. Values are only read here: what the fields' rules are beyond
their types, the service decides.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http.problems import Errors, FieldError
from gateway.transcoding.times import read_time

Read = Callable[[Any, str, Errors], Any]
"""Reads a JSON value at a path; appends to the errors and gives None if it cannot be."""

MAX_ATTRIBUTES_DEPTH = 30
"""Deepest nesting of a free JSON object, itself included. A message nests three levels
for each, and protobuf parsers stop at 100."""

_NULL = "must not be null; leave it out"
_BAD_CHARACTER = re.compile("[\x00\ud800-\udfff]")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")
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
                errors.append(FieldError(_printable(where), self._unknown(json_name)))
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
                if inner is not None and inner.full_name not in _WELL_KNOWN:
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
    one = _read_of_one(field)
    return _repeated(one) if field.is_repeated else one


def _read_of_one(field: FieldDescriptor) -> Read:
    if field.full_name in INTEGER_AS_TEXT:
        return _read_text_or_integer
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known or MessageReader(field.message_type).read
    if field.enum_type is not None:
        return _enum(field.enum_type)
    read = _SCALARS.get(field.type)
    if read is None:
        raise NotImplementedError(f"{field.full_name}: no reading of this type of field")
    return read


def _repeated(read: Read) -> Read:
    def read_all(value: Any, path: str, errors: Errors) -> list[Any] | None:  # noqa: ANN401
        if type(value) is not list:
            errors.append(FieldError(path, "must be an array"))
            return None
        items = []
        for index, item in enumerate(value):
            where = f"{path}[{index}]"
            if item is None:
                errors.append(FieldError(where, "must not be null"))
            else:
                items.append(read(item, where, errors))
        return items

    return read_all


def _read_text(value: Any, path: str, errors: Errors) -> str | None:  # noqa: ANN401
    if type(value) is not str:
        errors.append(FieldError(path, "must be a string"))
        return None
    if _BAD_CHARACTER.search(value):
        errors.append(FieldError(path, "must not hold NUL or half of a surrogate pair"))
        return None
    return value


def _read_text_or_integer(value: Any, path: str, errors: Errors) -> str | None:  # noqa: ANN401
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        errors.append(FieldError(path, "must be a string or an integer"))
        return None
    return _read_text(value, path, errors)


def _read_bool(value: Any, path: str, errors: Errors) -> bool | None:  # noqa: ANN401
    if type(value) is bool:
        return value
    errors.append(FieldError(path, "must be true or false"))
    return None


def _read_integer(bits: int) -> Read:
    limit = 1 << (bits - 1)

    def read(value: Any, path: str, errors: Errors) -> int | None:  # noqa: ANN401
        if (type(value) is str and _DECIMAL.fullmatch(value)) or (
            type(value) is float and value.is_integer()
        ):
            value = int(value)
        if type(value) is not int:
            errors.append(FieldError(path, "must be an integer"))
            return None
        if not -limit <= value < limit:
            errors.append(FieldError(path, f"must be an integer of {bits} bits"))
            return None
        return value

    return read


def _enum(enum: EnumDescriptor) -> Read:
    numbers = {value.name: value.number for value in enum.values}
    names = ", ".join(numbers)

    def read(value: Any, path: str, errors: Errors) -> int | None:  # noqa: ANN401
        number = numbers.get(value) if type(value) is str else None
        if number is None:
            errors.append(FieldError(path, f"must be one of {names}"))
        return number

    return read


def _read_struct(value: Any, path: str, errors: Errors) -> Struct | None:  # noqa: ANN401
    if type(value) is not dict:
        errors.append(FieldError(path, "must be an object"))
        return None
    struct = Struct()
    try:
        _fill_struct(struct, value, 1)
    except ValueError as error:
        errors.append(FieldError(path, str(error)))
        return None
    return struct


def _fill_struct(struct: Struct, value: dict[str, Any], depth: int) -> None:
    if depth > MAX_ATTRIBUTES_DEPTH:
        raise ValueError(f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep")
    for name, item in value.items():
        if _BAD_CHARACTER.search(name):
            raise ValueError("must not hold NUL or half of a surrogate pair in a name")
        _fill_value(struct.fields[name], item, depth)


def _fill_value(target: Value, value: Any, depth: int) -> None:  # noqa: ANN401
    if value is None:
        target.null_value = NULL_VALUE
    elif value is True or value is False:
        target.bool_value = value
    elif type(value) is str:
        if _BAD_CHARACTER.search(value):
            raise ValueError("must not hold NUL or half of a surrogate pair")
        target.string_value = value
    elif type(value) is dict:
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value, depth + 1)
    elif type(value) is list:
        if depth + 1 > MAX_ATTRIBUTES_DEPTH:
            raise ValueError(f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep")
        target.list_value.SetInParent()
        for item in value:
            _fill_value(target.list_value.values.add(), item, depth + 1)
    else:
        target.number_value = value


_WELL_KNOWN: Mapping[str, Read] = {
    Timestamp.DESCRIPTOR.full_name: read_time,
    Struct.DESCRIPTOR.full_name: _read_struct,
}
_SCALARS: Mapping[int, Read] = {
    FieldDescriptor.TYPE_STRING: _read_text,
    FieldDescriptor.TYPE_BOOL: _read_bool,
    FieldDescriptor.TYPE_INT32: _read_integer(32),
    FieldDescriptor.TYPE_INT64: _read_integer(64),
}


def read_query_bool(value: Any, path: str, errors: Errors) -> bool | None:  # noqa: ANN401
    """Read the words `true` and `false`, as JSON has them."""
    if value in {"true", "false"}:
        return bool(value == "true")
    errors.append(FieldError(path, "must be true or false"))
    return None


def query_reader(field: FieldDescriptor) -> Read:
    """Give what reads one query parameter, percent-decoded already, into this field.

    Only types that have a plain text are taken; a message in a query would need paths.
    """
    if field.type == FieldDescriptor.TYPE_BOOL:
        return read_query_bool
    message = field.message_type
    if message is not None and message.full_name != Timestamp.DESCRIPTOR.full_name:
        raise NotImplementedError(f"{field.full_name}: no query parameter of this type")
    return _read_of_one(field)


def _printable(path: str) -> str:
    return _BAD_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", path)
