"""Readers of single JSON values: what a field of each type accepts."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http.problems import Errors, FieldError
from gateway.transcoding.times import read_time

Read = Callable[[Any, str, Errors], Any]
"""Reads a JSON value at a path. If the value is not valid, it appends to the errors."""

MAX_ATTRIBUTES_DEPTH = 30
"""Maximum nesting of a free-form JSON object, itself included. A message needs three levels
for each, and protobuf parsers stop at 100."""

MAX_ATTRIBUTES_BYTES = 16 * 1024
"""Maximum size of a free-form JSON object as JSON text. The service checks it; here it limits the
number of values, each of which takes two bytes with its comma or brackets."""

_BAD_CHARACTER = re.compile("[\x00\ud800-\udfff]")
# More digits than any field can hold, so that a number that is too large is named as such.
_DECIMAL = re.compile(r"-?[0-9]{1,100}")
_SECONDS = re.compile(r"(-?)([0-9]{1,100})(?:\.([0-9]{1,9}))?s")
_MAX_SECONDS = 315_576_000_000
"""The longest google.protobuf.Duration: 10,000 years."""


def repeated(read: Read, *, most: int) -> Read:
    """Return a reader of arrays of what `read` accepts. None of too many elements is read."""

    def read_all(value: Any, path: str, errors: Errors) -> list[Any] | None:  # noqa: ANN401
        if type(value) is not list:
            errors.append(FieldError(path, "must be an array"))
            return None
        if len(value) > most:
            errors.append(FieldError(path, f"must have at most {most:,} elements"))
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
    # The zero value means that the field is absent.
    names = ", ".join(name for name, number in numbers.items() if number)

    def read(value: Any, path: str, errors: Errors) -> int | None:  # noqa: ANN401
        number = numbers.get(value) if type(value) is str else None
        if number is None:
            errors.append(FieldError(path, f"must be one of {names}"))
        return number

    return read


def read_duration(value: Any, path: str, errors: Errors) -> Duration | None:  # noqa: ANN401
    match = _SECONDS.fullmatch(value) if type(value) is str else None
    if match is None:
        errors.append(FieldError(path, "must be a duration in seconds, such as 1800s or 0.5s"))
        return None
    sign, seconds, fraction = match.groups()
    if int(seconds) > _MAX_SECONDS:
        errors.append(FieldError(path, f"must be a duration of at most {_MAX_SECONDS:,} s"))
        return None
    duration = Duration(seconds=int(seconds), nanos=int((fraction or "").ljust(9, "0")))
    return Duration(seconds=-duration.seconds, nanos=-duration.nanos) if sign else duration


def read_struct(value: Any, path: str, errors: Errors) -> Struct | None:  # noqa: ANN401
    if type(value) is not dict:
        errors.append(FieldError(path, "must be an object"))
        return None
    struct = Struct()
    try:
        _StructFiller().fill(struct, value, 1)
    except ValueError as error:
        errors.append(FieldError(path, str(error)))
        return None
    return struct


class _StructFiller:
    """Fills one Struct, with as many values as its JSON text can have."""

    def __init__(self) -> None:
        self._left = MAX_ATTRIBUTES_BYTES // 2

    def fill(self, struct: Struct, value: dict[str, Any], depth: int) -> None:
        self._enter(len(value), depth)
        for name, item in value.items():
            if _BAD_CHARACTER.search(name):
                raise ValueError("must not contain NUL or half of a surrogate pair in a name")
            self._fill_value(struct.fields[name], item, depth)

    def _enter(self, size: int, depth: int) -> None:
        if depth > MAX_ATTRIBUTES_DEPTH:
            raise ValueError(f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep")
        self._left -= size
        if self._left < 0:
            raise ValueError(f"must be at most {MAX_ATTRIBUTES_BYTES:,} bytes as JSON text")

    def _fill_value(self, target: Value, value: Any, depth: int) -> None:  # noqa: ANN401
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
            self.fill(target.struct_value, value, depth + 1)
        elif type(value) is list:
            self._enter(len(value), depth + 1)
            target.list_value.SetInParent()
            for item in value:
                self._fill_value(target.list_value.values.add(), item, depth + 1)
        else:
            target.number_value = value


WELL_KNOWN: Mapping[str, Read] = {
    Timestamp.DESCRIPTOR.full_name: read_time,
    Struct.DESCRIPTOR.full_name: read_struct,
    Duration.DESCRIPTOR.full_name: read_duration,
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
