"""Problem bodies (RFC 9457), and their conversion from gRPC statuses."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NewType

from appointments.v1.appointment_pb2 import BatchRefusal, TimeRangeConflict
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from public_json.reasons import DOMAIN, RETRY_DELAY, TEMPORARY, Reason
from public_json.rendering import MessageRenderer, camel_case

MEDIA_TYPE = "application/problem+json"

MAX_ERRORS = 100
"""Maximum number of errors in one response, so that it stays small for a hostile body."""
MAX_FIELD_PATH = 200

PATCH_SUFFIX = "_patch"
"""The end of the name of an input field that is merged into the field named before it. In REST
it is a member of a merge patch."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """The reason and detail of a gRPC status that has no reason of the service."""

    reason: Reason
    detail: str


# A reason of the service takes precedence. The status message is disclosed only with a reason,
# and for the statuses of `_INTERNAL` only with OPERATION_FAILED.
_INTERNAL = Fallback(Reason.INTERNAL, "Something failed on our side.")
_FALLBACKS: Mapping[StatusCode, Fallback] = {
    StatusCode.CANCELLED: Fallback(
        Reason.SERVICE_UNAVAILABLE,
        "The service ended the call; a write may or may not have happened. The same request"
        " may be sent again.",
    ),
    StatusCode.UNKNOWN: _INTERNAL,
    StatusCode.INVALID_ARGUMENT: Fallback(Reason.INVALID_ARGUMENT, "The request is not valid."),
    StatusCode.DEADLINE_EXCEEDED: Fallback(
        Reason.DEADLINE_EXCEEDED,
        "The service did not respond in time; a write may or may not have happened. The same"
        " request may be sent again.",
    ),
    StatusCode.NOT_FOUND: Fallback(Reason.NOT_FOUND, "The requested object does not exist."),
    StatusCode.ALREADY_EXISTS: Fallback(Reason.ALREADY_EXISTS, "The object already exists."),
    StatusCode.PERMISSION_DENIED: Fallback(Reason.PERMISSION_DENIED, "This is not allowed."),
    StatusCode.RESOURCE_EXHAUSTED: Fallback(Reason.OVERLOADED, "Too many requests are waiting."),
    StatusCode.FAILED_PRECONDITION: Fallback(
        Reason.FAILED_PRECONDITION, "The state does not allow the request."
    ),
    StatusCode.ABORTED: Fallback(Reason.ABORTED, "Another write interfered."),
    StatusCode.OUT_OF_RANGE: Fallback(Reason.OUT_OF_RANGE, "The request is out of range."),
    StatusCode.UNIMPLEMENTED: Fallback(
        Reason.UNIMPLEMENTED, "The service does not have this method."
    ),
    StatusCode.INTERNAL: _INTERNAL,
    StatusCode.UNAVAILABLE: Fallback(
        Reason.SERVICE_UNAVAILABLE,
        "The service cannot be reached; a write may or may not have happened. The same request"
        " may be sent again.",
    ),
    StatusCode.DATA_LOSS: _INTERNAL,
    StatusCode.UNAUTHENTICATED: Fallback(Reason.UNAUTHENTICATED, "Credentials are required."),
}
_KNOWN: Mapping[str, Reason] = {reason.value: reason for reason in Reason}
_ERROR_INFO = ErrorInfo.DESCRIPTOR.full_name
_BAD_REQUEST = BadRequest.DESCRIPTOR.full_name
_TIME_RANGE_CONFLICT = TimeRangeConflict.DESCRIPTOR.full_name
_BATCH_REFUSAL = BatchRefusal.DESCRIPTOR.full_name
_RETRY_INFO = RetryInfo.DESCRIPTOR.full_name
_STATUS_CODES: Mapping[int, StatusCode] = {code.value[0]: code for code in StatusCode}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One error of a request: `field` as the caller wrote it, `detail` says what to change."""

    field: str
    detail: str


Errors = list[FieldError]
"""The list to which readers append the errors they find."""


NewerReason = NewType("NewerReason", str)
"""A reason that this gateway does not know, from a newer service: passed on unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as the caller sees it. `retry_after` is in seconds.

    `details` are the members of the service's own details: the conflicts, or the items of a
    batch that were refused. `scope` is the one that the caller's credentials lack.
    """

    status: HTTPStatus
    code: Reason | NewerReason
    detail: str
    errors: Sequence[FieldError] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after: int | None = None
    scope: str = ""

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the JSON object of RFC 9457, with the extension members of this API."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [
                {"field": error.field[:MAX_FIELD_PATH], "detail": error.detail}
                for error in self.errors[:MAX_ERRORS]
            ]
        body.update(self.details)
        if request_id is not None:
            body["requestId"] = request_id
        return body


class ProblemError(Exception):
    """Ends the handling of a request: the response is this problem, with these headers."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.headers = headers or {}


def refusal(
    reason: Reason,
    detail: str,
    headers: Mapping[str, str] | None = None,
    *,
    errors: Sequence[FieldError] = (),
) -> ProblemError:
    """Return the error of a refused request. The reason determines the status."""
    problem = Problem(
        status=reason.http,
        code=reason,
        detail=detail,
        errors=errors,
        retry_after=RETRY_DELAY if reason.temporary else None,
    )
    return ProblemError(problem, headers)


def invalid_fields(errors: Sequence[FieldError]) -> ProblemError:
    """Return the error of a request with invalid fields, all of which it lists."""
    return refusal(Reason.INVALID_FIELD, _summary(errors), errors=tuple(errors))


def _summary(errors: Sequence[FieldError]) -> str:
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{first.field[:MAX_FIELD_PATH] or 'body'} {first.detail}{more}"


def malformed(detail: str) -> ProblemError:
    """Return the error of a request that cannot be parsed."""
    return refusal(Reason.MALFORMED_REQUEST, detail)


def internal() -> Problem:
    """Return the problem of an unexpected error, which does not disclose the cause."""
    return refusal(_INTERNAL.reason, _INTERNAL.detail).problem


class StatusConverter:
    """Converts `google.rpc.Status` to problems.

    Paths of invalid fields are converted to those of REST. A field that is the body itself in
    REST is left out: `appointment.start` becomes `start`. The field of a write in
    `SubmitAppointmentRequest` is left out too, so that an asynchronous write has the same
    errors as a synchronous one. Statuses inside a response, such as those of a batch, are
    converted as if the write had been sent alone.
    """

    def __init__(self, body_fields: frozenset[str]) -> None:
        fields = "|".join(sorted(body_fields))
        self._wrapped = re.compile(rf"((upsert|update|confirm|cancel|redact)\.)?(({fields})\.)?")
        self._render_conflicts: Callable[[Any], dict[str, Any]] = MessageRenderer(
            TimeRangeConflict.DESCRIPTOR
        ).render
        self._render_refusal: Callable[[Any], dict[str, Any]] = MessageRenderer(
            BatchRefusal.DESCRIPTOR
        ).render

    def of_status(self, status: Status, names: Mapping[str, str] | None = None) -> Problem:
        """Convert a status with its details; unknown details are ignored.

        `names` maps field paths to the names under which the caller sent them, where these
        differ. The message is passed on only if the service gave a reason: otherwise gRPC may
        have generated it, with addresses and other internals.
        """
        code = _STATUS_CODES.get(status.code, StatusCode.UNKNOWN)
        fallback = _FALLBACKS.get(code, _INTERNAL)
        reason = scope = ""
        errors: list[FieldError] = []
        details: Mapping[str, Any] = {}
        retry_after: int | None = None
        for packed in status.details:
            type_name = packed.type_url.rpartition("/")[2]
            try:
                if type_name == _ERROR_INFO:
                    info = ErrorInfo.FromString(packed.value)
                    if info.domain == DOMAIN:
                        reason = info.reason
                        scope = info.metadata.get("scope", "")
                elif type_name == _BAD_REQUEST:
                    errors.extend(
                        FieldError(
                            (names or {}).get(violation.field) or self._rest_path(violation.field),
                            violation.description,
                        )
                        for violation in BadRequest.FromString(packed.value).field_violations
                    )
                elif type_name == _TIME_RANGE_CONFLICT:
                    details = self._render_conflicts(TimeRangeConflict.FromString(packed.value))
                elif type_name == _BATCH_REFUSAL:
                    details = self._refusal(BatchRefusal.FromString(packed.value))
                elif type_name == _RETRY_INFO:
                    delay = RetryInfo.FromString(packed.value).retry_delay
                    retry_after = max(1, math.ceil(delay.seconds + delay.nanos / 1e9))
            except DecodeError:
                continue
        if fallback is _INTERNAL and reason != Reason.OPERATION_FAILED:
            return internal()
        known = _KNOWN.get(reason) if reason else fallback.reason
        http = known.http if known else fallback.reason.http
        if retry_after is None and http in TEMPORARY:
            retry_after = RETRY_DELAY
        if errors:
            detail = _summary(errors)  # the service's message has the paths of the proto
        else:
            detail = status.message if reason and status.message else fallback.detail
        return Problem(
            status=http,
            code=known or NewerReason(reason),
            detail=detail,
            errors=tuple(errors),
            details=details,
            retry_after=retry_after,
            scope=scope,
        )

    def render(self, status: Status) -> dict[str, Any]:
        """Return the problem object of a status inside a response."""
        return self.of_status(status).body()

    def _refusal(self, refusal: BatchRefusal) -> dict[str, Any]:
        """Render the refused items. The message for an invalid field begins with its path."""
        rendered = self._render_refusal(refusal)
        for item in rendered["items"]:
            path, colon, change = item["detail"].partition(": ")
            if item["code"] == Reason.INVALID_FIELD and colon:
                item["detail"] = f"{self._rest_path(path)} {change}"
        return rendered

    def _rest_path(self, proto_path: str) -> str:
        path = self._wrapped.sub("", proto_path, count=1)
        return camel_case(path.removesuffix(PATCH_SUFFIX))
