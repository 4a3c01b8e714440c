"""Maps each input field of an RPC to a part of the request: path, query, header or body."""

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor

from gateway.http.conditions import IF_MATCH, IF_NONE_MATCH
from gateway.http.problems import PATCH_SUFFIX
from gateway.transcoding.json_reader import nested_paths
from gateway.transcoding.routes import Route

CONDITION_OF_LISTS = "if_none_match"
"""The input field of a list that is the header If-None-Match."""
CONDITION_RESULTS = frozenset({"etag", "not_modified"})
"""The output fields of such a list that are not in the body, but the header ETag and the status."""

ORGANIZATION = "organization_id"
UPDATE_MASK = "update_mask"


def read_if_none_match(value: str) -> bool:
    """Read If-None-Match on a write. Only `*`, which means to create only, is supported.

    The service cannot check atomically with a write that the stored etag differs from others,
    so a write with entity tags is refused (RFC 9110, section 13.1.2). Raises ValueError.
    """
    if value.strip() != "*":
        raise ValueError("must be * on a write; to expect an etag, send it in If-Match")
    return True


def read_idempotency_key(value: str) -> str:
    """Return the key without the quotes of structured headers. Raises ValueError if empty."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if not value:
        raise ValueError("must not be empty")
    return value


@dataclass(frozen=True, slots=True)
class InputHeader:
    """A request header that sets an input field.

    `read` is None for a header that is evaluated elsewhere, because the field cannot hold all
    that it may contain.
    """

    name: str
    field: str
    read: Callable[[str], str | bool] | None


INPUT_HEADERS = (
    InputHeader(IF_MATCH, "etag", None),
    InputHeader(IF_NONE_MATCH, "create_only", read_if_none_match),
    InputHeader("Idempotency-Key", "idempotency_key", read_idempotency_key),
)


def header_fields(route: Route) -> dict[str, InputHeader]:
    """Return the headers that set input fields of this route, by field name."""
    if route.body == "*" or not route.writes:
        return {}
    names = {field.name for field in route.rpc.input_type.fields}
    return {header.field: header for header in INPUT_HEADERS if header.field in names}


def conditions_of(route: Route) -> tuple[str, ...]:
    """Return the headers that a route evaluates as conditions on the stored etag."""
    if not route.writes:
        return (IF_MATCH, IF_NONE_MATCH) if "etag" in route.response_message.fields_by_name else ()
    return (IF_MATCH,) if "etag" in header_fields(route) else ()


def header_results(route: Route) -> frozenset[str]:
    """Return the output fields that are headers and the status, not in the body."""
    has_condition = CONDITION_OF_LISTS in route.rpc.input_type.fields_by_name
    return CONDITION_RESULTS if has_condition else frozenset()


def query_fields(route: Route) -> tuple[FieldDescriptor, ...]:
    """Return the input fields that are query parameters: all that no other part sets."""
    if route.body == "*":
        return ()
    elsewhere = {route.body, *route.variables, *header_fields(route), *route.without}
    elsewhere.add(CONDITION_OF_LISTS)
    if route.patches:
        elsewhere |= {UPDATE_MASK, *merged_fields(route).values()}
    named = [field for field in address_fields(route) if field.name not in route.variables]
    rest = [field for field in route.rpc.input_type.fields if field.name not in elsewhere]
    return (*named, *rest)


def address_fields(route: Route) -> tuple[FieldDescriptor, ...]:
    """Return the fields of the message in the body that the URL sets.

    Those are the ones in its path, and then also the organization in its query, so that every
    method takes the same URL.
    """
    message = route.body_message
    if message is None or not route.identifying:
        return ()
    names = {*route.identifying, ORGANIZATION}
    return tuple(field for field in message.fields if field.name in names)


def merged_fields(route: Route) -> dict[str, str]:
    """Return the fields whose value a merge patch changes in part, with the input field that
    takes such a patch.
    """
    message = route.body_message
    if message is None or not route.patches:
        return {}
    inputs = route.rpc.input_type.fields_by_name
    return {
        field.name: field.name + PATCH_SUFFIX
        for field in message.fields
        if field.name + PATCH_SUFFIX in inputs
    }


def locations_of(route: Route, batch: Route | None) -> tuple[dict[str, str], dict[str, str]]:
    """Return where each field belongs, for the errors about misplaced fields.

    The first dictionary is for names found in the query, the second for names at the top
    level of the body.
    """
    names = {field.name: field.json_name for field in route.rpc.input_type.fields}
    elsewhere = {
        **{names.get(name, name): "in the path" for name in route.variables},
        **{
            names[name]: f"in the header {header.name}"
            for name, header in header_fields(route).items()
        },
    }
    if header_results(route):
        elsewhere[names[CONDITION_OF_LISTS]] = f"in the header {IF_NONE_MATCH}"
    query = {field.json_name: "in the query" for field in query_fields(route)}
    body: dict[str, str] = {}
    nested: dict[str, str] = {}
    if route.body_message is not None:
        body = {field.json_name: "in the body" for field in route.body_message.fields}
        nested = {name: f"in {path}" for name, path in nested_paths(route.body_message).items()}
    several = {}
    if batch is not None:
        several = {
            field.json_name: f"in the body of {batch.http_method} {batch.template}"
            for field in batch.rpc.input_type.fields
            if field.is_repeated
        }
    in_query = {**several, **nested, **body, **elsewhere}
    at_the_top = {**several, **query, **elsewhere, **nested}
    return in_query, at_the_top


def array_error(route: Route, batch: Route | None) -> str:
    """Return the error for a body that is an array, which says what to send instead."""
    accepting = batch or route
    if accepting.body != "*":
        return "must be an object"
    for field in accepting.rpc.input_type.fields:
        if field.is_repeated:
            form = f'{{"{field.json_name}": [{{...}}, ...]}}'
            if batch is None:
                return f"must be an object: {form}"
            return f"must be one object; several go to {batch.http_method} {batch.template}: {form}"
    return "must be an object"
