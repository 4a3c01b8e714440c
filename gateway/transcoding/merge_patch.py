"""Merge patches (RFC 7396): their members are what an update changes."""

from collections.abc import Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask

from gateway.http.problems import Errors
from gateway.transcoding.bindings import UPDATE_MASK, address_fields, merged_fields
from gateway.transcoding.json_reader import is_output_only
from gateway.transcoding.routes import Route
from gateway.transcoding.values import read_struct


class MergePatch:
    """Reads the merge patches of a route.

    The update mask names the members of the patch. A member that is `null` is in the mask but not
    in the message, which clears its field. The service merges objects, such as attributes, into
    the stored ones.
    """

    def __init__(self, route: Route) -> None:
        changed = changeable_fields(route)
        merged = merged_fields(route)
        self._paths = {field.json_name: field.name for field in changed}
        self._merged = {
            field.json_name: merged[field.name] for field in changed if field.name in merged
        }
        self._clearable = {field.json_name for field in changed if is_clearable(field)}

    def split(
        self, patch: Mapping[str, Any], errors: Errors
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the members that the message has, and the input fields for all others.

        Appends errors of objects that are merged.
        """
        members: dict[str, Any] = {}
        paths: list[str] = []
        fields: dict[str, Any] = {}
        for name, value in patch.items():
            if name in self._merged and type(value) is dict:
                fields[self._merged[name]] = read_struct(value, name, errors)
                continue
            if name in self._paths:
                paths.append(self._paths[name])
            if value is not None or name not in self._clearable:
                members[name] = value
        fields[UPDATE_MASK] = FieldMask(paths=paths)
        return members, fields


def changeable_fields(route: Route) -> list[FieldDescriptor]:
    """Return the fields of the message that a patch can change.

    Not those that identify it, those that the service sets, and the etag, which is a condition.
    """
    message = route.body_message
    if message is None:
        return []
    others = {field.name for field in address_fields(route)} | {"etag"}
    return [
        field for field in message.fields if field.name not in others and not is_output_only(field)
    ]


def is_clearable(field: FieldDescriptor) -> bool:
    """Return whether `null` is a value of this field in a patch."""
    behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.REQUIRED not in behavior
