"""Writes that are accepted now and applied soon: `Prefer: respond-async`, and operations."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any as AnyType
from urllib.parse import quote

import orjson
from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response
from appointments.v1.appointment_pb2 import Appointment, Outcome
from appointments.v1.appointment_service_pb2 import OperationMetadata, SubmitAppointmentRequest
from google.longrunning.operations_pb2 import (
    GetOperationRequest,
    ListOperationsRequest,
    ListOperationsResponse,
    Operation,
    WaitOperationRequest,
)
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from gateway.answers import json_answer
from gateway.bodies import refuse_body
from gateway.caller import ServiceCaller, revision_header
from gateway.exchange import Exchange
from gateway.inputs import QueryParameter, read_query
from gateway.problems import (
    Errors,
    FieldError,
    Problem,
    ProblemError,
    StatusReader,
    invalid_fields,
)
from gateway.rendering import MessageRenderer, Render
from gateway.routes import decode_percent

OPERATIONS_PATH = "/api/operations"
OPERATION_PATH = "/api/operations/{id}"
DEFAULT_ORGANIZATION = "default"

MAX_WAIT = 20.0
"""Longest that the end of an operation is waited for, in seconds."""

PREFER = "Prefer"
PREFERENCE_APPLIED = "Preference-Applied"

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s?")
# A token, and what it is set to, if anything, quoted or not (RFC 7240, section 2).
_PREFERENCE = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9a-zA-Z-]+)(?:\s*=\s*"?([^",;]*)"?)?')
_NO_STORE: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store"}


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a caller would like (RFC 7240). `wait` is in seconds; what is not known is ignored."""

    respond_async: bool
    wait: float


def read_preferences(request: BaseRequest) -> Preferences:
    """Read the `Prefer` headers of a request; of a repeated preference the first counts."""
    preferences: dict[str, str] = {}
    for header in request.headers.getall(PREFER, ()):
        for part in header.split(","):
            if match := _PREFERENCE.match(part):
                preferences.setdefault(match[1].lower(), match[2] or "")
    wait = preferences.get("wait", "")
    return Preferences(
        respond_async="respond-async" in preferences,
        wait=min(float(wait), MAX_WAIT) if wait.isascii() and wait.isdecimal() else 0,
    )


def submission_kind(request: Descriptor) -> str | None:
    """Tell as what a request can be submitted, if it can: the field of SubmitAppointment."""
    for field in SubmitAppointmentRequest.DESCRIPTOR.fields:
        if field.message_type is request:
            return field.name
    return None


class OperationAnswers:
    """Renders operations: proto3 JSON, but an error is a problem as everywhere."""

    def __init__(self, statuses: StatusReader) -> None:
        self.statuses = statuses
        special: dict[str, Render] = {Status.DESCRIPTOR.full_name: statuses.render}
        self._packed = {
            message.DESCRIPTOR.full_name: (message, MessageRenderer(message.DESCRIPTOR).render)
            for message in (Appointment, OperationMetadata)
        }
        special[Any.DESCRIPTOR.full_name] = self._render_any
        self._operation = MessageRenderer(Operation.DESCRIPTOR, special).render

    def one(self, operation: Operation, status: HTTPStatus, headers: Mapping[str, str]) -> Response:
        """Answer with an operation."""
        body = orjson.dumps(self._operation(operation))
        return json_answer(status, body, {**_NO_STORE, **headers})

    def page(self, page: ListOperationsResponse, headers: Mapping[str, str]) -> Response:
        """Answer with a page of operations."""
        body = {
            "operations": [self._operation(operation) for operation in page.operations],
            "nextPageToken": page.next_page_token,
        }
        return json_answer(HTTPStatus.OK, orjson.dumps(body), {**_NO_STORE, **headers})

    def _render_any(self, packed: Any) -> dict[str, AnyType]:
        message, render = self._packed[packed.TypeName()]
        return {"@type": packed.type_url, **render(message.FromString(packed.value))}


# How a write that was made is answered: the appointment, the outcome, headers.
Written = Callable[[Exchange, Appointment, Outcome.ValueType, dict[str, str]], Response]


class Submission:
    """Submits the writes of a route instead of making them at once."""

    def __init__(
        self, kind: str, service: ServiceCaller, written: Written, answers: OperationAnswers
    ) -> None:
        self._kind = kind
        self._service = service
        self._written = written
        self._answers = answers

    async def answer(
        self, exchange: Exchange, request: Message, actor: str, preferences: Preferences
    ) -> Response:
        """Submit, wait for the end as long as the caller likes to, and answer.

        Once the operation is accepted the answer is 202 unless its end is known: what goes
        wrong in waiting does not undo it.
        """
        submission = SubmitAppointmentRequest()
        getattr(submission, self._kind).CopyFrom(request)
        reply = await self._service.call("SubmitAppointment", submission, exchange, actor=actor)
        operation = Operation.FromString(reply.response)
        headers: dict[str, str] = {}
        if preferences.wait:
            duration = Duration()
            duration.FromNanoseconds(int(preferences.wait * 1e9))
            wait = WaitOperationRequest(name=operation.name, timeout=duration)
            try:
                reply = await self._service.call(
                    "WaitOperation", wait, exchange, wait=preferences.wait
                )
            except ProblemError:
                pass
            else:
                operation = Operation.FromString(reply.response)
                headers = revision_header(reply.organization_revision)
        if not operation.done:
            headers[hdrs.LOCATION] = _location(operation.name)
            headers[PREFERENCE_APPLIED] = "respond-async"
            return self._answers.one(operation, HTTPStatus.ACCEPTED, headers)
        headers[PREFERENCE_APPLIED] = f"wait={preferences.wait:g}"
        if operation.HasField("error"):
            raise ProblemError(self._answers.statuses.of_status(operation.error), headers)
        metadata = OperationMetadata.FromString(operation.metadata.value)
        stored = Appointment.FromString(operation.response.value)
        return self._written(exchange, stored, metadata.outcome, {**_NO_STORE, **headers})


class OperationEndpoint:
    """Answers `GET /api/operations/{id}`, at once or when the operation is done."""

    name = "GetOperation"

    def __init__(self, service: ServiceCaller, answers: OperationAnswers) -> None:
        self._service = service
        self._answers = answers

    async def __call__(self, exchange: Exchange) -> Response:
        refuse_body(exchange.request)
        fields = _read_fields(exchange, _ORGANIZATION | _WAIT)
        try:
            operation_id = decode_percent(exchange.variables["id"]).lower()
        except ValueError as error:
            raise invalid_fields([FieldError("id", str(error))]) from None
        if not _UUID.fullmatch(operation_id):
            raise _not_found()
        exchange.organization = fields.get("organization_id", DEFAULT_ORGANIZATION)
        name = f"{_parent(exchange.organization)}/operations/{operation_id}"
        seconds = fields.get("wait", 0.0)
        if seconds:
            duration = Duration()
            duration.FromNanoseconds(int(seconds * 1e9))
            reply = await self._service.call(
                "WaitOperation",
                WaitOperationRequest(name=name, timeout=duration),
                exchange,
                wait=seconds,
            )
        else:
            reply = await self._service.call(self.name, GetOperationRequest(name=name), exchange)
        return self._answers.one(
            Operation.FromString(reply.response),
            HTTPStatus.OK,
            revision_header(reply.organization_revision),
        )


class OperationsEndpoint:
    """Answers `GET /api/operations`, the latest first."""

    name = "ListOperations"

    def __init__(self, service: ServiceCaller, answers: OperationAnswers) -> None:
        self._service = service
        self._answers = answers

    async def __call__(self, exchange: Exchange) -> Response:
        refuse_body(exchange.request)
        fields = _read_fields(exchange, _ORGANIZATION | _PAGE)
        exchange.organization = fields.pop("organization_id", DEFAULT_ORGANIZATION)
        request = ListOperationsRequest(name=_parent(exchange.organization), **fields)
        reply = await self._service.call(self.name, request, exchange)
        return self._answers.page(
            ListOperationsResponse.FromString(reply.response),
            revision_header(reply.organization_revision),
        )


def _not_found() -> ProblemError:
    return ProblemError(
        Problem(
            status=HTTPStatus.NOT_FOUND,
            code="OPERATION_NOT_FOUND",
            detail="there is no such operation",
        )
    )


def _read_fields(
    exchange: Exchange, parameters: Mapping[str, QueryParameter]
) -> dict[str, AnyType]:
    errors: Errors = []
    fields: dict[str, AnyType] = {}
    read_query(exchange.query, parameters, fields, errors)
    if errors:
        raise invalid_fields(errors)
    return fields


def _read_organization(value: str, path: str, errors: Errors) -> str:
    if not 0 < len(value) <= 128:
        errors.append(FieldError(path, "must have 1 to 128 characters, or be left out"))
    return value


def _read_text(value: str, path: str, errors: Errors) -> str:  # noqa: ARG001
    return value


def _read_page_size(value: str, path: str, errors: Errors) -> int:
    if not re.fullmatch("[0-9]{1,4}", value) or int(value) > 1000:
        errors.append(FieldError(path, "must be an integer of 0 to 1,000"))
        return 0
    return int(value)


def _read_wait(value: str, path: str, errors: Errors) -> float:
    match = _SECONDS.fullmatch(value)
    if match is None or float(match[1]) > MAX_WAIT:
        errors.append(FieldError(path, f"must be seconds up to {MAX_WAIT:g}, such as 10s"))
        return 0
    return float(match[1])


_ORGANIZATION = {"organizationId": QueryParameter("organization_id", False, _read_organization)}
_WAIT = {"wait": QueryParameter("wait", False, _read_wait)}
_PAGE = {
    "filter": QueryParameter("filter", False, _read_text),
    "pageSize": QueryParameter("page_size", False, _read_page_size),
    "pageToken": QueryParameter("page_token", False, _read_text),
}


def _parent(organization_id: str) -> str:
    return f"organizations/{quote(organization_id, safe='')}"


def _location(name: str) -> str:
    """Give the reference under which an operation is read, from its name."""
    _, organization, _, operation_id = name.split("/")
    location = OPERATION_PATH.replace("{id}", operation_id)
    if organization == DEFAULT_ORGANIZATION:
        return location
    return f"{location}?organizationId={organization}"
