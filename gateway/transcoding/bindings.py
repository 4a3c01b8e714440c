"""By which part of an HTTP request each input field comes: path, query, header or body."""

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor

from gateway.http.conditions import IF_MATCH, IF_NONE_MATCH
from gateway.transcoding.json_reader import nested_paths
from gateway.transcoding.routes import Route


def read_if_none_match(value: str) -> bool:
    """Read the wish to create only.

    That a certain state is not the stored one, which entity tags would say, nothing can
    decide together with the write; so the write is refused rather than made (RFC 9110,
    13.1.2).
    """
    if value.strip() != "*":
        raise ValueError("must be * on a write; to expect an etag, send it in If-Match")
    return True


def read_idempotency_key(value: str) -> str:
    """Give the key, without the double quotes that structured headers put around it."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if not value:
        raise ValueError("must not be empty")
    return value


@dataclass(frozen=True, slots=True)
class InputHeader:
    """A request header that stands for an input field.

    Without `read` it has more to say than the field can hold.
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
    """Give the headers that stand for input fields of this route, by field name."""
    if route.body == "*" or not route.writes:
        return {}
    names = {field.name for field in route.rpc.input_type.fields}
    return {header.field: header for header in INPUT_HEADERS if header.field in names}


def conditions_of(route: Route) -> tuple[str, ...]:
    """List the headers that a route evaluates as conditions on the etag of what is stored."""
    if not route.writes:
        return (IF_MATCH, IF_NONE_MATCH) if "etag" in route.answer_message.fields_by_name else ()
    return (IF_MATCH,) if "etag" in header_fields(route) else ()


def query_fields(route: Route) -> tuple[FieldDescriptor, ...]:
    """List the input fields that are query parameters: all that come by no other way."""
    if route.body == "*":
        return ()
    elsewhere = {route.body, *route.variables, *header_fields(route)}
    return tuple(field for field in route.rpc.input_type.fields if field.name not in elsewhere)


def places_of(route: Route, batch: Route | None) -> tuple[dict[str, str], dict[str, str]]:
    """Tell where what a request says stands, for those who put it elsewhere.

    First of what is not in the query, then of what is not at the top of the body.
    """
    names = {field.name: field.json_name for field in route.rpc.input_type.fields}
    elsewhere = {
        **{names[name]: "in the path" for name in route.variables},
        **{
            names[name]: f"in the header {header.name}"
            for name, header in header_fields(route).items()
        },
    }
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


def array_refusal(route: Route, batch: Route | None) -> str:
    """Say what to send instead of an array."""
    taking = batch or route
    if taking.body != "*":
        return "must be an object"
    for field in taking.rpc.input_type.fields:
        if field.is_repeated:
            form = f'{{"{field.json_name}": [{{...}}, ...]}}'
            if batch is None:
                return f"must be an object: {form}"
            return f"must be one object; several go to {batch.http_method} {batch.template}: {form}"
    return "must be an object"
