"""Parses the query of a URL. Errors show the invalid part as it was sent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http.problems import Errors, FieldError
from gateway.http.router import decode_percent
from gateway.transcoding.json_reader import field_reader
from gateway.transcoding.values import Read


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A query parameter: its field, and the conversion of its value."""

    name: str
    repeated: bool
    read: Read
    is_time: bool = False

    @classmethod
    def of(cls, field: FieldDescriptor) -> Self:
        """Return the parameter of a field."""
        message = field.message_type
        is_time = message is not None and message.full_name == Timestamp.DESCRIPTOR.full_name
        return cls(field.name, field.is_repeated, query_reader(field), is_time)


# A + in a query means a space. But a + in a time with an unencoded colon or a T is more
# likely a UTC offset typed by a person: encoders that write a space as + also encode colons,
# and a time with a T has no space.
_PLAIN_TIME = re.compile("[:Tt]")
MAX_SHOWN = 100
_PLAIN_MESSAGES = {Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name}
_NO_LOCATIONS: Mapping[str, str] = {}


def read_query(
    query: str,
    parameters: Mapping[str, QueryParameter],
    fields: dict[str, Any],
    errors: Errors,
    locations: Mapping[str, str] = _NO_LOCATIONS,
) -> None:
    """Convert the encoded query of a URL to fields, and append all errors.

    `locations` says where names that are not parameters belong in the request.
    """
    if not query:
        return
    for pair in query.split("&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition("=")
        if not raw_name:
            detail = f"has a parameter without a name: {_as_sent(pair)}"
            errors.append(FieldError("query", detail))
            continue
        try:
            name = decode_percent(raw_name.replace("+", " "))
        except ValueError as error:
            errors.append(FieldError("query", f"{error}: {_as_sent(raw_name)}"))
            continue
        parameter = parameters.get(name)
        if parameter is None:
            hint = f"; it belongs {locations[name]}" if name in locations else ""
            detail = f"is not a query parameter of this method{hint}"
            errors.append(FieldError(_as_sent(raw_name), detail))
            continue
        if parameter.is_time and "+" in raw_value and _PLAIN_TIME.search(raw_value):
            detail = f"must have a + written as %2B, a space as %20: {_as_sent(raw_value)}"
            errors.append(FieldError(name, detail))
            continue
        try:
            value = decode_percent(raw_value.replace("+", " "))
        except ValueError as error:
            errors.append(FieldError(name, str(error)))
            continue
        read = parameter.read(value, name, errors)
        if parameter.repeated:
            fields.setdefault(parameter.name, []).append(read)
        elif parameter.name in fields:
            errors.append(FieldError(name, "must not be repeated; send one value"))
        else:
            fields[parameter.name] = read


def read_query_bool(value: Any, path: str, errors: Errors) -> bool | None:  # noqa: ANN401
    """Read the words `true` and `false`, as JSON has them."""
    if value in {"true", "false"}:
        return bool(value == "true")
    errors.append(FieldError(path, "must be true or false"))
    return None


def query_reader(field: FieldDescriptor) -> Read:
    """Return a reader of the percent-decoded value of a query parameter for this field.

    Only types with a plain text form are supported: a nested message would need paths.
    """
    if field.type == FieldDescriptor.TYPE_BOOL:
        return read_query_bool
    message = field.message_type
    if message is not None and message.full_name not in _PLAIN_MESSAGES:
        raise NotImplementedError(f"{field.full_name}: no query parameter of this type")
    return field_reader(field)


def _as_sent(text: str) -> str:
    """Return a part of a URL as it was sent, with U+FFFD for bytes that are not UTF-8."""
    shown = text.encode(errors="surrogateescape").decode(errors="replace")
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
