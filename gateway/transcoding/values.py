"""Readers of single JSON values: what a field of each type accepts."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http.problems import Errors, FieldError
from gateway.transcoding.times import read_time

Read = Callable[[Any, str, Errors], Any]
"""Reads a JSON value at a path. If the value is not valid, it appends to the errors."""

MAX_ATTRIBUTES_DEPTH = 30
"""Maximum nesting of a free-form JSON object, itself included. A message needs three levels
for each, and protobuf parsers stop at 100."""

_BAD_CHARACTER = re.compile("[\x00\ud800-\udfff]")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")


def repeated(read: Read) -> Read:
    """Return a reader of arrays of what `read` accepts."""

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


def read_text(value: Any, path: str, errors: Errors) -> str | None:  # noqa: ANN401
    if type(value) is not str:
        errors.append(FieldError(path, "must be a string"))
        return None
    if _BAD_CHARACTER.search(value):
        errors.append(FieldError(path, "must not contain NUL or half of a surrogate pair"))
        return None
    return value


def read_text_or_integer(value: Any, path: str, errors: Errors) -> str | None:  # noqa: ANN401
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        errors.append(FieldError(path, "must be a string or an integer"))
        return None
    return read_text(value, path, errors)


def read_bool(value: Any, path: str, errors: Errors) -> bool | None:  # noqa: ANN401
    if type(value) is bool:
        return value
    errors.append(FieldError(path, "must be true or false"))
    return None


def integer_reader(bits: int) -> Read:
    """Return a reader of signed integers; whole floats and decimal strings are accepted too."""
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


def enum_reader(enum: EnumDescriptor) -> Read:
    """Return a reader of the names of an enum, which gives their numbers."""
    numbers = {value.name: value.number for value in enum.values}
    names = ", ".join(numbers)

    def read(value: Any, path: str, errors: Errors) -> int | None:  # noqa: ANN401
        number = numbers.get(value) if type(value) is str else None
        if number is None:
            errors.append(FieldError(path, f"must be one of {names}"))
        return number

    return read


def read_struct(value: Any, path: str, errors: Errors) -> Struct | None:  # noqa: ANN401
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
            raise ValueError("must not contain NUL or half of a surrogate pair in a name")
        _fill_value(struct.fields[name], item, depth)


def _fill_value(target: Value, value: Any, depth: int) -> None:  # noqa: ANN401
    if value is None:
        target.null_value = NULL_VALUE
    elif value is True or value is False:
        target.bool_value = value
    elif type(value) is str:
        if _BAD_CHARACTER.search(value):
            raise ValueError("must not contain NUL or half of a surrogate pair")
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


WELL_KNOWN: Mapping[str, Read] = {
    Timestamp.DESCRIPTOR.full_name: read_time,
    Struct.DESCRIPTOR.full_name: read_struct,
}
SCALARS: Mapping[int, Read] = {
    FieldDescriptor.TYPE_STRING: read_text,
    FieldDescriptor.TYPE_BOOL: read_bool,
    FieldDescriptor.TYPE_INT32: integer_reader(32),
    FieldDescriptor.TYPE_INT64: integer_reader(64),
}


def printable(path: str) -> str:
    """Replace the characters of a path that a response cannot contain."""
    return _BAD_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", path)
