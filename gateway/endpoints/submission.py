"""Asynchronous writes: `Prefer: respond-async`."""

import re
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import OperationMetadata, SubmitAppointmentRequest
from google.longrunning.operations_pb2 import Operation
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from gateway.endpoints.operations import (
    MAX_WAIT,
    NO_STORE,
    WAIT_OPERATION,
    OperationResponses,
    operation_location,
    wait_request,
)
from gateway.endpoints.route_responses import RouteResponses
from gateway.http.context import RequestContext
from gateway.http.in_flight import InFlight
from gateway.http.problems import ProblemError
from gateway.upstream.client import ServiceClient, revision_header

PREFER = "Prefer"
PREFERENCE_APPLIED = "Preference-Applied"

SUBMIT = "/appointments.v1.AppointmentService/SubmitAppointment"

# RFC 7240, section 2: a preference is a token with an optional value, then parameters.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_SETTING = rf"({_WORD})(?:[ \t]*=[ \t]*({_WORD}|{_QUOTED}))?"
# Up to the next comma outside quotes. Invalid preferences and parameters are ignored.
_ELEMENT = re.compile(
    rf"[ \t]*(?:{_SETTING}(?=[ \t]*(?:[;,]|$)))?(?:{_QUOTED}|[^\",]|\".*)*(?:,|$)"
)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of a caller (RFC 7240). `wait` is in seconds. Others are ignored."""

    respond_async: bool
    wait: float


def read_preferences(request: BaseRequest) -> Preferences:
    """Parse the `Prefer` headers of a request. The first of repeated preferences counts."""
    preferences: dict[str, str] = {}
    for header in request.headers.getall(PREFER, ()):
        for name, value in _ELEMENT.findall(header):
            if name:
                preferences.setdefault(name.lower(), _unquoted(value))
    wait = preferences.get("wait", "")
    return Preferences(
        respond_async="respond-async" in preferences,
        wait=min(float(wait), MAX_WAIT) if wait.isascii() and wait.isdecimal() else 0,
    )


def _unquoted(word: str) -> str:
    return _ESCAPED.sub(r"\1", word[1:-1]) if word.startswith('"') else word


def submission_kind(request: Descriptor) -> str | None:
    """Return the field of `SubmitAppointmentRequest` for a type of request, or None."""
    for field in SubmitAppointmentRequest.DESCRIPTOR.fields:
        if field.message_type is request:
            return field.name
    return None


class Submission:
    """Submits the writes of a route as asynchronous writes."""

    def __init__(
        self,
        kind: str,
        service: ServiceClient,
        responses: RouteResponses,
        operations: OperationResponses,
        waiting: InFlight,
    ) -> None:
        self._kind = kind
        self._service = service
        self._responses = responses
        self._operations = operations
        self._waiting = waiting

    async def submit(self, context: RequestContext, request: Message) -> Operation:
        """Submit a write. Raises `ProblemError` if it was not accepted, or this is unknown."""
        submission = SubmitAppointmentRequest()
        getattr(submission, self._kind).CopyFrom(request)
        reply = await self._service.call(SUBMIT, submission, context)
        return Operation.FromString(reply.response)

    async def respond(
        self, context: RequestContext, operation: Operation, preferences: Preferences
    ) -> Response:
        """Wait for the result as long as the caller prefers, then respond.

        The status is 202 unless the result is known: an error while waiting, or too many
        waiting requests, do not affect the accepted write. Raises `ProblemError` if the write
        failed.
        """
        headers: dict[str, str] = {}
        if preferences.wait:
            wait = wait_request(operation.name, preferences.wait)
            try:
                with self._waiting:
                    reply = await self._service.call(
                        WAIT_OPERATION, wait, context, wait=preferences.wait
                    )
            except ProblemError:
                pass
            else:
                operation = Operation.FromString(reply.response)
                headers = revision_header(reply.organization_revision)
        if not operation.done:
            headers[hdrs.LOCATION] = operation_location(operation.name)
            headers[PREFERENCE_APPLIED] = "respond-async"
            return self._operations.one(operation, HTTPStatus.ACCEPTED, headers)
        headers[PREFERENCE_APPLIED] = f"wait={preferences.wait:g}"
        if operation.HasField("error"):
            raise ProblemError(self._operations.statuses.of_status(operation.error), headers)
        metadata = OperationMetadata.FromString(operation.metadata.value)
        stored = Appointment.FromString(operation.response.value)
        return self._responses.of_write(context, stored, metadata.outcome, {**NO_STORE, **headers})
