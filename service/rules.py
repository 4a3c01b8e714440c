"""Validation of requests. All invalid fields are reported together.

Rules for one field, such as its maximum length, are options of that field in the .proto
files. Rules that involve several fields are in this module.
"""

import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import orjson
from appointments.v1 import rules_pb2
from appointments.v1.appointment_pb2 import Appointment
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from service.errors import InvalidFields
from service.times import EPOCH, MICROSECOND

Violations = list[tuple[str, str]]
_Check = Callable[[Message, str, Violations], None]


def of(field: FieldDescriptor) -> rules_pb2.FieldRules:
    """Return the rules of a field in the .proto."""
    return field.GetOptions().Extensions[rules_pb2.rules]


def most_items(message: Descriptor) -> dict[int, int]:
    """Return how many elements the repeated fields of a message may have, by number."""
    most = {field.number: of(field).max_items for field in message.fields}
    return {number: items for number, items in most.items() if items}


MAX_ORGANIZATION = of(Appointment.DESCRIPTOR.fields_by_name["organization_id"]).max_length
MAX_DURATION = timedelta(days=3653)
MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_ATTRIBUTES_DEPTH = 30
# A serialized Struct is at most 5.5 times as long as its JSON text: a number of one digit and its
# comma take 11 bytes.
_MAX_STRUCT_BYTES = 6 * MAX_ATTRIBUTES_BYTES

# Unicode's control characters (general category Cc).
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# The years 1 to 9999, the range of RFC 3339 and google.protobuf.Timestamp.
_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799


def check_fields(message: Message, prefix: str, violations: Violations) -> None:
    """Add every field that violates a rule in the .proto. Nested messages are not checked.

    Raises InvalidFields if a repeated field has too many elements, so that nothing reads
    hundreds of thousands of them.
    """
    for check in _checks(message.DESCRIPTOR):
        check(message, prefix, violations)


@cache
def _checks(descriptor: Descriptor) -> list[_Check]:
    checks = []
    for field in descriptor.fields:
        options = field.GetOptions()
        if field_behavior_pb2.OUTPUT_ONLY in options.Extensions[field_behavior_pb2.field_behavior]:
            continue  # ignored, since clients send back what they have read
        rules = of(field)
        if field.is_repeated:
            checks.append(_items_check(field, rules))
        elif field.type == FieldDescriptor.TYPE_STRING:
            checks.append(_string_check(field, rules))
        elif rules.HasField("minimum") or rules.HasField("maximum"):
            checks.append(_number_check(field, rules))
    return checks


def _items_check(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> _Check:
    name, most, least, longest = field.name, rules.max_items, rules.min_length, rules.max_length
    are_text = field.type == FieldDescriptor.TYPE_STRING

    def check(message: Message, prefix: str, violations: Violations) -> None:
        items = getattr(message, name)
        if len(items) > most:
            violations.append((prefix + name, f"must have at most {most:,} elements"))
            raise InvalidFields(violations)
        if are_text:
            for index, text in enumerate(items):
                path = f"{prefix}{name}[{index}]"
                if len(text) < least:
                    violations.append((path, "must not be empty"))
                elif len(text) > longest:
                    violations.append((path, f"must have at most {longest:,} characters"))
                if not text.isprintable() and CONTROL.search(text):
                    violations.append((path, "must not contain control characters"))

    return check


def _string_check(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> _Check:
    name, least, most = field.name, rules.min_length, rules.max_length
    allowed = list(rules.one_of)
    optional = field.has_presence

    def check(message: Message, prefix: str, violations: Violations) -> None:
        text: str = getattr(message, name)
        if len(text) < least:
            if not optional:
                violations.append((prefix + name, "is required"))
            elif message.HasField(name):
                violations.append((prefix + name, "must not be empty; leave it out instead"))
        elif allowed:
            if text and text not in allowed:
                violations.append((prefix + name, f"must be {' or '.join(allowed)}"))
            return
        elif len(text) > most:
            violations.append((prefix + name, f"must have at most {most:,} characters"))
        if not text.isprintable() and CONTROL.search(text):
            violations.append((prefix + name, "must not contain control characters"))

    return check


def _number_check(field: FieldDescriptor, rules: rules_pb2.FieldRules) -> _Check:
    name = field.name
    least = rules.minimum if rules.HasField("minimum") else -math.inf
    most = rules.maximum if rules.HasField("maximum") else math.inf

    def check(message: Message, prefix: str, violations: Violations) -> None:
        number = getattr(message, name)
        if number < least:
            violations.append((prefix + name, f"must be at least {least:,}"))
        elif number > most:
            violations.append((prefix + name, f"must be at most {most:,}"))

    return check


def read_time(
    message: Message, name: str, prefix: str, violations: Violations, *, required: bool = False
) -> datetime | None:
    """Return a Timestamp field, truncated to microseconds; None if it is absent or invalid."""
    if not message.HasField(name):
        if required:
            violations.append((prefix + name, "is required"))
        return None
    timestamp: Timestamp = getattr(message, name)
    if not (
        _FIRST_SECOND <= timestamp.seconds <= _LAST_SECOND and 0 <= timestamp.nanos < 1_000_000_000
    ):
        violations.append((prefix + name, "must be a time in the years 1 to 9999"))
        return None
    return EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def read_duration(
    message: Message,
    name: str,
    violations: Violations,
    *,
    most: timedelta,
    positive: bool = True,
) -> int | None:
    """Return a Duration field in microseconds, truncated; None if it is absent or invalid."""
    if not message.HasField(name):
        return None
    duration: Duration = getattr(message, name)
    microseconds = duration.seconds * 1_000_000 + duration.nanos // 1000
    least = 1 if positive else 0
    if microseconds < least or duration.nanos < 0 or duration.seconds < 0:
        violations.append((name, "must be positive" if positive else "must not be negative"))
        return None
    if microseconds > most // MICROSECOND:
        hours = most // timedelta(hours=1)
        violations.append((name, f"must be at most {hours:,} hours"))
        return None
    return microseconds


def check_range(
    start: datetime | None, end: datetime | None, prefix: str, violations: Violations
) -> None:
    """Check that a range is not empty and not too long. None is an end that is invalid."""
    if start is None or end is None:
        return
    if end <= start:
        violations.append((f"{prefix}end", "must be after start"))
    elif end - start > MAX_DURATION:
        days = MAX_DURATION.days
        violations.append((f"{prefix}end", f"must be at most {days:,} days after start"))


def check_resources(
    resource_id: str, additional: Sequence[str], field: str, violations: Violations
) -> None:
    """Check that an appointment occupies each of its resources once."""
    seen = {resource_id}
    for index, other in enumerate(additional):
        if other in seen:
            detail = "must differ from the appointment's other resources"
            violations.append((f"{field}[{index}]", detail))
        seen.add(other)


def read_attributes(struct: Struct, field: str, violations: Violations) -> str:
    """Return a Struct as canonical JSON text: compact, keys sorted."""
    if not struct.fields:
        return "{}"
    too_long = f"must be at most {MAX_ATTRIBUTES_BYTES:,} bytes as JSON text"
    if struct.ByteSize() > _MAX_STRUCT_BYTES:  # without reading a million values
        violations.append((field, too_long))
        return "{}"
    try:
        text = orjson.dumps(_plain_object(struct, 1), option=orjson.OPT_SORT_KEYS)
    except _InvalidAttributes as error:
        violations.append((field, str(error)))
        return "{}"
    if len(text) > MAX_ATTRIBUTES_BYTES:
        violations.append((field, too_long))
    return text.decode()


class _InvalidAttributes(Exception):
    pass


def _plain_object(struct: Struct, depth: int) -> dict[str, Any]:
    if depth > MAX_ATTRIBUTES_DEPTH:
        raise _InvalidAttributes(f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep")
    return {_plain_text(key): _plain(value, depth) for key, value in struct.fields.items()}


def _plain(value: Value, depth: int) -> Any:  # noqa: ANN401  # JSON is any
    match value.WhichOneof("kind"):
        case "string_value":
            return _plain_text(value.string_value)
        case "number_value":
            return _plain_number(value.number_value)
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case "struct_value":
            return _plain_object(value.struct_value, depth + 1)
        case "list_value":
            if depth + 1 > MAX_ATTRIBUTES_DEPTH:
                raise _InvalidAttributes(f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep")
            return [_plain(item, depth + 1) for item in value.list_value.values]
    raise _InvalidAttributes("must not contain a google.protobuf.Value without a kind")


def _plain_text(text: str) -> str:
    if "\x00" in text:
        raise _InvalidAttributes("must not contain the NUL character")
    return text


def _plain_number(number: float) -> int | float:
    """Return a double in its shortest JSON form: 1 instead of 1.0, but -0.0 as it is."""
    if not math.isfinite(number):
        raise _InvalidAttributes("must not contain NaN or infinities, which JSON does not have")
    if number.is_integer() and abs(number) < 2**53 and (number or math.copysign(1, number) > 0):
        return int(number)
    return number
