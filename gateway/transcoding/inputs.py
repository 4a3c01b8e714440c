"""Reads path, query, headers and body of an HTTP request into an input message."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp.web import BaseRequest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.http.conditions import IF_MATCH, EntityTags, possible_list_etags, read_tags
from gateway.http.context import RequestContext
from gateway.http.problems import Errors, FieldError, invalid_fields
from gateway.http.router import decode_percent
from gateway.transcoding.bindings import (
    INPUT_HEADERS,
    address_fields,
    array_error,
    conditions_of,
    header_fields,
    locations_of,
    query_fields,
)
from gateway.transcoding.json_reader import MessageReader
from gateway.transcoding.merge_patch import MergePatch
from gateway.transcoding.query import QueryParameter, query_reader, read_query
from gateway.transcoding.routes import Route
from gateway.transcoding.strict_json import parse_json


def set_condition(message: Any, tags: EntityTags, prefix: str = "") -> None:  # noqa: ANN401
    """Set the etags that the list must not have, without their prefix; tags of others lack it."""
    known = possible_list_etags(tags)
    message.if_none_match = ",".join(
        tag.removeprefix(prefix) for tag in known if tag.startswith(prefix)
    )


class InputReader:
    """Reads the requests of one route into its input messages."""

    def __init__(self, route: Route, batch: Route | None = None) -> None:
        """Prepare a route. `batch` is the route for a batch of its inputs, if any."""
        fields = route.rpc.input_type.fields_by_name
        self._new: Callable[..., Message] = GetMessageClass(route.rpc.input_type)
        self._body = route.body
        message = route.body_message
        in_path = frozenset(route.variables) if route.body == "*" else frozenset[str]()
        self._query_locations, body_locations = locations_of(route, batch)
        self._body_reader = (
            MessageReader(message, without=in_path, locations=body_locations)
            if message is not None
            else None
        )
        self._patch = MergePatch(route) if route.patches else None
        self._array_error = array_error(route, batch)
        self._address = {field.name: field.json_name for field in address_fields(route)}
        in_body = message.fields_by_name if message is not None else {}
        self._variables = {
            name: (field.json_name, query_reader(field))
            for name in route.variables
            for field in [in_body[name] if name in route.identifying else fields[name]]
        }
        self._parameters = {
            field.json_name: QueryParameter.of(field) for field in query_fields(route)
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

    def read(self, context: RequestContext, body: bytes) -> Message:
        """Build the input message, and store the conditions on an etag in the context.

        Raises `ProblemError`: MALFORMED_REQUEST if the body is not JSON, else INVALID_FIELD
        with all errors of path, query, headers and body.
        """
        errors: Errors = []
        fields: dict[str, Any] = {}
        message: Message | None = None
        self._read_variables(context.variables, fields, errors)
        read_query(context.query, self._parameters, fields, errors, self._query_locations)
        self._read_headers(context.request, fields, errors)
        self._read_conditions(context, errors)
        if self._body_reader is not None:
            value = parse_json(body)
            if type(value) is list:
                errors.append(FieldError("", self._array_error))
            else:
                if self._patch is not None and type(value) is dict:
                    value, given = self._patch.split(value, errors)
                    fields.update(given)
                message = self._body_reader.read(value, "", errors)
                if message is not None:
                    self._set_address(message, fields, errors)
        if errors:
            raise invalid_fields(errors)
        if message is not None and self._body == "*":
            for name, value in fields.items():
                setattr(message, name, value)
            return message
        if message is not None:
            fields[self._body] = message
        return self._new(**fields)

    def _set_address(self, message: Any, fields: dict[str, Any], errors: Errors) -> None:  # noqa: ANN401
        """Set the fields that the URL sets in the message of the body."""
        for name, json_name in self._address.items():
            if name not in fields:
                continue
            value = fields.pop(name)
            if value is None:
                continue  # an error has been appended
            if message.HasField(name) and getattr(message, name) != value:
                errors.append(FieldError(json_name, "must be that of the URL, or be left out"))
            setattr(message, name, value)

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
                errors.append(FieldError(header.name, "must not be repeated"))
                continue
            value = values[0]
            if not (value.isascii() and value.isprintable()):
                errors.append(FieldError(header.name, "must be printable ASCII"))
                continue
            try:
                fields[header.field] = read(value)
            except ValueError as error:
                errors.append(FieldError(header.name, str(error)))
        # Ignoring a condition could make a write that the caller did not intend. A read of
        # something without an etag does ignore it.
        errors.extend(
            FieldError(name, "is not supported by this method")
            for name in self._refused_headers
            if name in request.headers
        )

    def _read_conditions(self, context: RequestContext, errors: Errors) -> None:
        for name in self._conditions:
            values = context.request.headers.getall(name, ())
            if not values:
                continue
            try:
                tags = read_tags(values)
            except ValueError as error:
                errors.append(FieldError(name, str(error)))
                continue
            if name == IF_MATCH:
                context.if_match = tags
            else:
                context.if_none_match = tags
