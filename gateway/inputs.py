"""HTTP requests to input messages: path, query, headers and body to their fields."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp.web import BaseRequest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.conditions import IF_MATCH, IF_NONE_MATCH, read_tags
from gateway.exchange import Exchange
from gateway.problems import Errors, FieldError, invalid_fields
from gateway.routes import Route, decode_percent
from gateway.strict_json import parse_json
from gateway.transcoding import MessageReader, Read, query_reader


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


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A query parameter: the field that it is read into, and how."""

    name: str
    repeated: bool
    read: Read


def read_query(
    query: str, parameters: Mapping[str, QueryParameter], fields: dict[str, Any], errors: Errors
) -> None:
    """Read the query of a URL, still encoded, into fields; every fault is added to the errors."""
    if not query:
        return
    for pair in query.split("&"):
        if not pair:
            continue
        raw_name, _, raw_value = pair.partition("=")
        try:
            name = decode_percent(raw_name.replace("+", " "))
        except ValueError as error:
            errors.append(FieldError("query", str(error)))
            continue
        parameter = parameters.get(name)
        if parameter is None:
            errors.append(FieldError(name, "is not a query parameter of this method"))
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
            errors.append(FieldError(name, "must be there only once"))
        else:
            fields[parameter.name] = read


class InputReader:
    """Reads the requests of one route into its input messages."""

    def __init__(self, route: Route) -> None:
        fields = route.rpc.input_type.fields_by_name
        self._new: Callable[..., Message] = GetMessageClass(route.rpc.input_type)
        self._body = route.body
        message = route.body_message
        in_path = frozenset(route.variables) if route.body == "*" else frozenset[str]()
        self._body_reader = MessageReader(message, without=in_path) if message is not None else None
        self._variables = {
            name: (fields[name].json_name, query_reader(fields[name])) for name in route.variables
        }
        self._parameters = {
            field.json_name: QueryParameter(field.name, field.is_repeated, query_reader(field))
            for field in query_fields(route)
        }
        headers = header_fields(route).values()
        self._headers = tuple((header, header.read) for header in headers if header.read)
        self._conditions = conditions_of(route)
        self._refused_headers = (
            tuple(header.name for header in INPUT_HEADERS if header not in headers)
            if route.writes
            else ()
        )

    @property
    def takes_body(self) -> bool:
        return self._body_reader is not None

    def read(self, exchange: Exchange, body: bytes) -> Message:
        """Build the input message, and read the conditions on an etag into the exchange.

        Raises `ProblemError`: MALFORMED_REQUEST if the body is not JSON at all, else
        INVALID_FIELD with every fault of path, query, headers and body.
        """
        errors: Errors = []
        fields: dict[str, Any] = {}
        message: Message | None = None
        self._read_variables(exchange.variables, fields, errors)
        read_query(exchange.query, self._parameters, fields, errors)
        self._read_headers(exchange.request, fields, errors)
        self._read_conditions(exchange, errors)
        if self._body_reader is not None:
            message = self._body_reader.read(parse_json(body), "", errors)
        if errors:
            raise invalid_fields(errors)
        if message is not None and self._body == "*":
            for name, value in fields.items():
                setattr(message, name, value)
            return message
        if message is not None:
            fields[self._body] = message
        return self._new(**fields)

    def _read_variables(
        self, variables: Mapping[str, str], fields: dict[str, Any], errors: Errors
    ) -> None:
        for name, raw in variables.items():
            json_name, read = self._variables[name]
            try:
                fields[name] = read(decode_percent(raw), json_name, errors)
            except ValueError as error:
                errors.append(FieldError(json_name, str(error)))

    def _read_headers(self, request: BaseRequest, fields: dict[str, Any], errors: Errors) -> None:
        for header, read in self._headers:
            values = request.headers.getall(header.name, ())
            if not values:
                continue
            if len(values) > 1:
                errors.append(FieldError(header.name, "must be there only once"))
                continue
            value = values[0]
            if not (value.isascii() and value.isprintable()):
                errors.append(FieldError(header.name, "must be printable ASCII"))
                continue
            try:
                fields[header.field] = read(value)
            except ValueError as error:
                errors.append(FieldError(header.name, str(error)))
        # A condition that is passed over would be a write that the caller did not mean. A
        # read without an etag ignores it.
        errors.extend(
            FieldError(name, "is not taken by this method")
            for name in self._refused_headers
            if name in request.headers
        )

    def _read_conditions(self, exchange: Exchange, errors: Errors) -> None:
        for name in self._conditions:
            values = exchange.request.headers.getall(name, ())
            if not values:
                continue
            try:
                tags = read_tags(values)
            except ValueError as error:
                errors.append(FieldError(name, str(error)))
                continue
            if name == IF_MATCH:
                exchange.if_match = tags
            else:
                exchange.if_none_match = tags
