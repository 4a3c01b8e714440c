"""JSON Schemas of messages in requests (input) and responses (output)."""

from collections.abc import Collection, Mapping
from typing import Any

from appointments.v1 import rules_pb2
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from gateway.transcoding.json_reader import INTEGER_AS_TEXT, is_output_only
from gateway.transcoding.merge_patch import is_clearable

Schema = dict[str, Any]

NO_CONTROL_CHARACTERS = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
_SPACED_TIME = (
    "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01]) "
    "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$"
)
# Every 64-bit integer of the API is a revision. It is a string in responses. Requests accept
# this string; their bodies also accept a number, as in proto3 JSON.
_REVISION: Schema = {"type": "string", "format": "int64", "pattern": "^[0-9]{1,19}$"}
TIME_OUTPUT: Schema = {"type": "string", "format": "date-time"}
TIME_INPUT: Schema = {
    "anyOf": [
        {"type": "string", "format": "date-time", "description": "RFC 3339, with an offset."},
        {"type": "string", "pattern": _SPACED_TIME, "description": "Without an offset: UTC."},
    ],
}
_DURATION: Schema = {"type": "string", "pattern": "^[0-9]{1,12}([.][0-9]{1,9})?s$"}
# Nested values are not described, since most client generators do not support recursive
# schemas.
_FREE_JSON: Schema = {
    "type": "object",
    "description": "Any JSON object without the NUL character.",
    "additionalProperties": True,
}


class Schemas:
    """Creates schemas. Those of messages and enums are stored in `components`.

    A message that occurs in requests and responses has two schemas. The input schema refuses
    unknown properties and accepts all supported formats. In the output schema, fields that
    are always present are required. All objects and enums are named components, because client
    generators make up names for others, which may clash.
    """

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self.components: dict[str, Schema] = {}

    def input(self, message: Descriptor, *, without: Collection[str] = ()) -> Schema:
        """Return a reference to the input schema of a message, without some fields."""
        name = _component_name(message)
        name = name if "Request" in name else f"{name}Input"
        return self._message(message, name, True, without=without)

    def patch(self, message: Descriptor, changeable: Collection[FieldDescriptor]) -> Schema:
        """Return a reference to the schema of a merge patch of a message.

        All that an input has may be in it, nothing must; `null` clears.
        """
        name = f"{_component_name(message)}Patch"
        if name not in self.components:
            clearable = {field.name for field in changeable if is_clearable(field)}
            self.components[name] = {
                "type": "object",
                "description": "A merge patch (RFC 7396): what it holds changes. `null` clears,"
                " and removes a member of `attributes`.",
                "properties": {
                    field.json_name: _nullable(self._field(field, True))
                    if field.name in clearable
                    else self._field(field, True)
                    for field in message.fields
                },
                "additionalProperties": False,
            }
        return {"$ref": f"#/components/schemas/{name}"}

    def output(self, message: Descriptor, *, without: Collection[str] = ()) -> Schema:
        """Return a reference to the output schema of a message, without some fields."""
        return self._message(message, _component_name(message), False, without=without)

    def parameter(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field as a path variable or query parameter."""
        is_revision = field.type == FieldDescriptor.TYPE_INT64
        schema = dict(_REVISION) if is_revision else self._value(field, True)
        return _array(field, schema) if field.is_repeated else schema

    def described(self, field: FieldDescriptor, parameter: Schema) -> Schema:
        """Add the comment of a field in the protos to its parameter."""
        description = self._comments.get(field.full_name)
        return {**parameter, "description": description} if description else parameter

    def _message(
        self, message: Descriptor, name: str, is_input: bool, *, without: Collection[str] = ()
    ) -> Schema:
        if name not in self.components:
            schema: Schema = {"type": "object"}
            self.components[name] = schema
            if message.full_name in self._comments:
                schema["description"] = self._comments[message.full_name]
            fields = [
                field
                for field in message.fields
                if field.name not in without and (is_input or not _is_input_only(field))
            ]
            schema["properties"] = {
                field.json_name: self._field(field, is_input) for field in fields
            }
            required = [
                field.json_name
                for field in fields
                if is_required(field) or not (is_input or _may_be_absent(field))
            ]
            if required:
                schema["required"] = required
            if is_input:
                schema["additionalProperties"] = False
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: FieldDescriptor, is_input: bool) -> Schema:
        schema = self._value(field, is_input)
        if field.is_repeated:
            schema = _array(field, schema)
        description = self._comments.get(field.full_name, "")
        if is_input and is_output_only(field):
            # Not `readOnly`: clients may send back what they have read.
            description = f"{description} Ignored in requests; set by the service.".strip()
        if _is_input_only(field):
            schema = {**schema, "writeOnly": True}
        return {**schema, "description": description} if description else schema

    def _value(self, field: FieldDescriptor, is_input: bool) -> Schema:
        if field.enum_type is not None:
            return self.enumeration(field.enum_type)
        if field.message_type is not None:
            return self._message_value(field.message_type, is_input)
        return _scalar(field, is_input)

    def _message_value(self, message: Descriptor, is_input: bool) -> Schema:
        match message.full_name:
            case Timestamp.DESCRIPTOR.full_name:
                return dict(TIME_INPUT if is_input else TIME_OUTPUT)
            case Duration.DESCRIPTOR.full_name:
                return dict(_DURATION)
            case Struct.DESCRIPTOR.full_name:
                self.components["JsonObject"] = _FREE_JSON
                return {"$ref": "#/components/schemas/JsonObject"}
            case Status.DESCRIPTOR.full_name:
                return {"$ref": "#/components/schemas/Problem"}
        return self.input(message) if is_input else self.output(message)

    def enumeration(self, enum: EnumDescriptor) -> Schema:
        """Return a reference to the schema of an enum."""
        name = _component_name(enum)
        if name not in self.components:
            # Zero means unspecified (AIP-126) and never occurs in responses.
            values = [value for value in enum.values if value.number != 0]
            meanings = [
                f"- `{value.name}`: {comment}"
                for value in values
                if (comment := self._comments.get(f"{enum.full_name}.{value.name}"))
            ]
            lines = [self._comments.get(enum.full_name, ""), *meanings]
            self.components[name] = {
                "type": "string",
                "enum": [value.name for value in values],
                "description": "\n".join(line for line in lines if line),
            }
        return {"$ref": f"#/components/schemas/{name}"}


def _array(field: FieldDescriptor, items: Schema) -> Schema:
    schema: Schema = {"type": "array", "items": items}
    rules = field.GetOptions().Extensions[rules_pb2.rules]
    if is_required(field):
        schema["minItems"] = 1  # an empty list is a missing one
    if rules.max_items:
        schema["maxItems"] = rules.max_items
    return schema


def _nullable(schema: Schema) -> Schema:
    described = {name: schema[name] for name in ("description",) if name in schema}
    value = {name: item for name, item in schema.items() if name not in described}
    choices = value["anyOf"] if set(value) == {"anyOf"} else [value]
    return {"anyOf": [*choices, {"type": "null"}], **described}


def _component_name(descriptor: Descriptor | EnumDescriptor) -> str:
    outer = descriptor.containing_type
    if outer is None:
        return descriptor.name
    name = _component_name(outer)
    return name if name.endswith(descriptor.name) else name + descriptor.name


def is_required(field: FieldDescriptor) -> bool:
    return field_behavior_pb2.REQUIRED in _behavior(field)


def _may_be_absent(field: FieldDescriptor) -> bool:
    """Return whether responses may omit this field. Fields without presence are always set."""
    return field.has_presence and field_behavior_pb2.NON_EMPTY_DEFAULT not in _behavior(field)


def _is_input_only(field: FieldDescriptor) -> bool:
    """Return whether responses never contain this field (AIP-203)."""
    return field_behavior_pb2.INPUT_ONLY in _behavior(field)


def _behavior(field: FieldDescriptor) -> Collection[int]:
    behavior: Collection[int] = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return behavior


def _scalar(field: FieldDescriptor, is_input: bool) -> Schema:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type == FieldDescriptor.TYPE_INT32:
        return {"type": "integer", "format": "int32", **_limits(field)}
    if field.type == FieldDescriptor.TYPE_INT64:
        return {"anyOf": [_REVISION, {"type": "integer"}]} if is_input else dict(_REVISION)
    if is_input and field.full_name in INTEGER_AS_TEXT:
        return {"anyOf": [_text(field), {"type": "integer"}]}
    if is_input and is_output_only(field):
        return {"type": "string"}  # ignored, so that no rules apply
    return _text(field)


def _text(field: FieldDescriptor) -> Schema:
    rules = field.GetOptions().Extensions[rules_pb2.rules]
    if rules.one_of:
        return {"type": "string", "enum": list(rules.one_of)}
    return {"type": "string", "pattern": NO_CONTROL_CHARACTERS, **_limits(field)}


def _limits(field: FieldDescriptor) -> Schema:
    rules = field.GetOptions().Extensions[rules_pb2.rules]
    limits: Schema = {}
    if rules.min_length:
        limits["minLength"] = rules.min_length
    if rules.max_length:
        limits["maxLength"] = rules.max_length
    if rules.HasField("minimum"):
        limits["minimum"] = rules.minimum
    if rules.HasField("maximum"):
        limits["maximum"] = rules.maximum
    return limits
