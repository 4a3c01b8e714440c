"""Operations: the state of asynchronous writes."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any as AnyType
from urllib.parse import quote, unquote

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import OperationMetadata
from google.longrunning.operations_pb2 import (
    GetOperationRequest,
    ListOperationsRequest,
    ListOperationsResponse,
    Operation,
    WaitOperationRequest,
)
from google.protobuf.any_pb2 import Any
from google.rpc.status_pb2 import Status

from gateway.endpoints.organizations import (
    DEFAULT_ORGANIZATION,
    MAX_ORGANIZATION,
    resource_location,
)
from gateway.http.context import RequestContext
from gateway.http.in_flight import InFlight
from gateway.http.problems import (
    Errors,
    FieldError,
    ProblemError,
    StatusConverter,
    invalid_fields,
    refusal,
)
from gateway.http.responses import json_response
from gateway.http.router import decode_percent
from gateway.transcoding.query import QueryParameter, query_reader, read_query
from gateway.upstream.client import ServiceClient, revision_header
from public_json.reasons import Reason
from public_json.rendering import MessageRenderer, Render

OPERATIONS_PATH = "/api/operations"
OPERATION_PATH = "/api/operations/{id}"

GET_OPERATION = "/google.longrunning.Operations/GetOperation"
LIST_OPERATIONS = "/google.longrunning.Operations/ListOperations"
WAIT_OPERATION = "/google.longrunning.Operations/WaitOperation"

MAX_WAIT = 20.0
"""Maximum wait for the end of an operation, in seconds."""

NO_STORE: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store"}

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Checked here because the service would report it for the operation's name instead.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s?")


class OperationResponses:
    """Renders operations as proto3 JSON, with errors as problems."""

    def __init__(self, statuses: StatusConverter) -> None:
        self.statuses = statuses
        special: dict[str, Render] = {Status.DESCRIPTOR.full_name: statuses.render}
        self._packed = {
            message.DESCRIPTOR.full_name: (message, MessageRenderer(message.DESCRIPTOR).render)
            for message in (Appointment, OperationMetadata)
        }
        special[Any.DESCRIPTOR.full_name] = self._render_any
        self._operation = MessageRenderer(Operation.DESCRIPTOR, special).render

    def one(self, operation: Operation, status: HTTPStatus, headers: Mapping[str, str]) -> Response:
        """Return the response of an operation."""
        body = orjson.dumps(self._operation(operation))
        return json_response(status, body, {**NO_STORE, **headers})

    def page(self, page: ListOperationsResponse, headers: Mapping[str, str]) -> Response:
        """Return the response of a page of operations."""
        body = {
            "operations": [self._operation(operation) for operation in page.operations],
            "nextPageToken": page.next_page_token,
        }
        return json_response(HTTPStatus.OK, orjson.dumps(body), {**NO_STORE, **headers})

    def _render_any(self, packed: Any) -> dict[str, AnyType]:
        message, render = self._packed[packed.TypeName()]
        return {"@type": packed.type_url, **render(message.FromString(packed.value))}


class OperationEndpoint:
    """Handles `GET /api/operations/{id}`: reads an operation, or waits until it is done."""

    name = "GetOperation"
    takes_body = False

    def __init__(
        self,
        service: ServiceClient,
        responses: OperationResponses,
        in_flight: InFlight,
        waiting: InFlight,
    ) -> None:
        self._service = service
        self._responses = responses
        self._in_flight = in_flight
        self._waiting = waiting

    async def __call__(self, context: RequestContext) -> Response:
        fields = _read_fields(context, _ORGANIZATION | _WAIT)
        try:
            operation_id = decode_percent(context.variables["id"]).lower()
        except ValueError as error:
            raise invalid_fields([FieldError("id", str(error))]) from None
        if not _UUID.fullmatch(operation_id):
            raise _not_found()
        context.organization = fields.get("organization_id", DEFAULT_ORGANIZATION)
        name = f"{_parent(context.organization)}/operations/{operation_id}"
        seconds = fields.get("wait", 0.0)
        if seconds:
            wait = wait_request(name, seconds)
            with self._waiting:
                reply = await self._service.call(WAIT_OPERATION, wait, context, wait=seconds)
        else:
            get = GetOperationRequest(name=name)
            with self._in_flight:
                reply = await self._service.call(GET_OPERATION, get, context)
        return self._responses.one(
            Operation.FromString(reply.response),
            HTTPStatus.OK,
            revision_header(reply.organization_revision),
        )


class OperationsEndpoint:
    """Handles `GET /api/operations`: lists operations, the latest first."""

    name = "ListOperations"
    takes_body = False

    def __init__(
        self, service: ServiceClient, responses: OperationResponses, in_flight: InFlight
    ) -> None:
        self._service = service
        self._responses = responses
        self._in_flight = in_flight

    async def __call__(self, context: RequestContext) -> Response:
        fields = _read_fields(context, _ORGANIZATION | _PAGE)
        context.organization = fields.pop("organization_id", DEFAULT_ORGANIZATION)
        request = ListOperationsRequest(name=_parent(context.organization), **fields)
        with self._in_flight:
            reply = await self._service.call(LIST_OPERATIONS, request, context)
        return self._responses.page(
            ListOperationsResponse.FromString(reply.response),
            revision_header(reply.organization_revision),
        )


def _not_found() -> ProblemError:
    return refusal(Reason.OPERATION_NOT_FOUND, "there is no such operation")


def _read_fields(
    context: RequestContext, parameters: Mapping[str, QueryParameter]
) -> dict[str, AnyType]:
    errors: Errors = []
    fields: dict[str, AnyType] = {}
    read_query(context.query, parameters, fields, errors)
    if errors:
        raise invalid_fields(errors)
    return fields


def _read_organization(value: str, path: str, errors: Errors) -> str:
    if not 0 < len(value) <= MAX_ORGANIZATION:
        errors.append(
            FieldError(path, f"must have 1 to {MAX_ORGANIZATION} characters, or be left out")
        )
    if _CONTROL.search(value):
        errors.append(FieldError(path, "must not contain control characters"))
    return value


def _read_wait(value: str, path: str, errors: Errors) -> float:
    match = _SECONDS.fullmatch(value)
    if match is None or float(match[1]) > MAX_WAIT:
        errors.append(
            FieldError(path, f"must be a number of seconds, at most {MAX_WAIT:g}, such as 10s")
        )
        return 0
    return float(match[1])


_ORGANIZATION = {"organizationId": QueryParameter("organization_id", False, _read_organization)}
_WAIT = {"wait": QueryParameter("wait", False, _read_wait)}
_PAGE = {
    field.json_name: QueryParameter(field.name, False, query_reader(field))
    for field in ListOperationsRequest.DESCRIPTOR.fields
    if field.name in {"filter", "page_size", "page_token"}
}


def _parent(organization_id: str) -> str:
    return f"organizations/{quote(organization_id, safe='')}"


def wait_request(name: str, seconds: float) -> WaitOperationRequest:
    """Return a request that waits `seconds` until an operation is done."""
    request = WaitOperationRequest(name=name)
    request.timeout.FromNanoseconds(int(seconds * 1e9))
    return request


def operation_location(name: str) -> str:
    """Return the URL of an operation, relative to the host, from its name."""
    _, organization, _, operation_id = name.split("/")
    return resource_location(OPERATIONS_PATH, operation_id, unquote(organization))
