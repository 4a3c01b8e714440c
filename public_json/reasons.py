"""The reasons for refusing requests, with their gRPC codes, HTTP statuses and meanings.

The errors of the service take their gRPC codes from this table, and the gateway its HTTP
statuses. The OpenAPI document takes from it the values of `code` and the error responses.
"""

from enum import Enum, StrEnum, auto
from http import HTTPStatus
from typing import Self

from grpc import StatusCode

DOMAIN = "appointments.v1"
"""The domain of the reasons in `google.rpc.ErrorInfo`."""

TEMPORARY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""The statuses after which the same request may succeed later. They come with `RETRY_DELAY`."""

RETRY_DELAY = 1
"""The delay in `RetryInfo` and `Retry-After`, in seconds."""


class Requests(Enum):
    """The requests for whose operations the OpenAPI document lists the status of a reason."""

    ANY = auto()
    WITH_BODY = auto()
    BY_ID = auto()
    WRITE = auto()
    CONDITIONAL = auto()
    WITH_KEY = auto()
    NONE = auto()
    """No request that the document describes; it has `default` responses for these."""


class Reason(StrEnum):
    """The `reason` of an `ErrorInfo` and the `code` of a problem: stable, for programs.

    `grpc` is None if only the gateway gives the reason. `meaning` follows the name in the
    OpenAPI document.
    """

    grpc: StatusCode | None
    http: HTTPStatus
    requests: Requests
    meaning: str

    def __new__(
        cls,
        code: str,
        grpc: StatusCode | None,
        http: HTTPStatus,
        requests: Requests,
        meaning: str,
    ) -> Self:
        """Return a reason whose string value is `code`."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.grpc = grpc
        reason.http = http
        reason.requests = requests
        reason.meaning = meaning
        return reason

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.http in TEMPORARY

    # Invalid requests.
    INVALID_FIELD = (
        "INVALID_FIELD",
        StatusCode.INVALID_ARGUMENT,
        HTTPStatus.BAD_REQUEST,
        Requests.ANY,
        "fields, parameters or headers are invalid; `errors` lists all of them.",
    )
    MALFORMED_REQUEST = (
        "MALFORMED_REQUEST",
        StatusCode.INVALID_ARGUMENT,
        HTTPStatus.BAD_REQUEST,
        Requests.ANY,
        "the request cannot be parsed: it is not HTTP, or its body is not JSON.",
    )
    ROUTE_NOT_FOUND = (
        "ROUTE_NOT_FOUND",
        None,
        HTTPStatus.NOT_FOUND,
        Requests.NONE,
        "there is no route with this path.",
    )
    METHOD_NOT_ALLOWED = (
        "METHOD_NOT_ALLOWED",
        None,
        HTTPStatus.METHOD_NOT_ALLOWED,
        Requests.ANY,
        "the path does not support this method; `Allow` lists those it supports.",
    )
    METHOD_NOT_IMPLEMENTED = (
        "METHOD_NOT_IMPLEMENTED",
        None,
        HTTPStatus.NOT_IMPLEMENTED,
        Requests.NONE,
        "the method is not an HTTP method.",
    )
    URI_TOO_LONG = (
        "URI_TOO_LONG",
        None,
        HTTPStatus.REQUEST_URI_TOO_LONG,
        Requests.ANY,
        "the URL is too long.",
    )
    HEADERS_TOO_LARGE = (
        "HEADERS_TOO_LARGE",
        None,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        Requests.ANY,
        "a header is too long, or there are too many.",
    )
    REQUEST_TIMEOUT = (
        "REQUEST_TIMEOUT",
        None,
        HTTPStatus.REQUEST_TIMEOUT,
        Requests.WITH_BODY,
        "the body took too long to arrive.",
    )
    REQUEST_TOO_LARGE = (
        "REQUEST_TOO_LARGE",
        StatusCode.RESOURCE_EXHAUSTED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        Requests.WITH_BODY,
        "the body is too large.",
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "UNSUPPORTED_MEDIA_TYPE",
        None,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        Requests.WITH_BODY,
        "the body is not JSON in UTF-8, or it is compressed.",
    )

    # Access.
    UNAUTHENTICATED = (
        "UNAUTHENTICATED",
        StatusCode.UNAUTHENTICATED,
        HTTPStatus.UNAUTHORIZED,
        Requests.ANY,
        "access control is on, and the request has no credential or one that is not valid.",
    )
    PERMISSION_DENIED = (
        "PERMISSION_DENIED",
        StatusCode.PERMISSION_DENIED,
        HTTPStatus.FORBIDDEN,
        Requests.ANY,
        "the credential is not for the organization, or lacks a scope.",
    )
    ACCESS_UNAVAILABLE = (
        "ACCESS_UNAVAILABLE",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the credential cannot be checked at the moment; nothing was written.",
    )

    # Conflicts with the stored state.
    APPOINTMENT_NOT_FOUND = (
        "APPOINTMENT_NOT_FOUND",
        StatusCode.NOT_FOUND,
        HTTPStatus.NOT_FOUND,
        Requests.BY_ID,
        "the organization has no such appointment, or had none at that time.",
    )
    OPERATION_NOT_FOUND = (
        "OPERATION_NOT_FOUND",
        StatusCode.NOT_FOUND,
        HTTPStatus.NOT_FOUND,
        Requests.BY_ID,
        "the organization has no such operation, or it is no longer kept.",
    )
    WEBHOOK_NOT_FOUND = (
        "WEBHOOK_NOT_FOUND",
        StatusCode.NOT_FOUND,
        HTTPStatus.NOT_FOUND,
        Requests.BY_ID,
        "the organization has no such webhook.",
    )
    TIME_RANGE_CONFLICT = (
        "TIME_RANGE_CONFLICT",
        StatusCode.ALREADY_EXISTS,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the time range is taken; `conflicts` lists the appointments that occupy it.",
    )
    APPOINTMENT_CANCELLED = (
        "APPOINTMENT_CANCELLED",
        StatusCode.FAILED_PRECONDITION,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the appointment is cancelled, so it can be neither changed nor confirmed.",
    )
    HOLD_EXPIRED = (
        "HOLD_EXPIRED",
        StatusCode.FAILED_PRECONDITION,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the hold has expired, so the appointment can be neither changed nor confirmed.",
    )
    APPOINTMENT_FIRM = (
        "APPOINTMENT_FIRM",
        StatusCode.FAILED_PRECONDITION,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the appointment is firm, so it cannot be held.",
    )
    BATCH_REFUSED = (
        "BATCH_REFUSED",
        StatusCode.ABORTED,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "an atomic batch was refused and nothing written; `items` lists the items at fault.",
    )
    WEBHOOK_LIMIT_REACHED = (
        "WEBHOOK_LIMIT_REACHED",
        StatusCode.FAILED_PRECONDITION,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the organization has its maximum number of webhooks.",
    )
    ETAG_MISMATCH = (
        "ETAG_MISMATCH",
        StatusCode.ABORTED,
        HTTPStatus.PRECONDITION_FAILED,
        Requests.CONDITIONAL,
        "the stored appointment has a different etag: another caller changed it.",
    )
    APPOINTMENT_EXISTS = (
        "APPOINTMENT_EXISTS",
        StatusCode.ALREADY_EXISTS,
        HTTPStatus.PRECONDITION_FAILED,
        Requests.CONDITIONAL,
        "the id should be new, but it exists.",
    )
    IDEMPOTENCY_KEY_REUSED = (
        "IDEMPOTENCY_KEY_REUSED",
        StatusCode.INVALID_ARGUMENT,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        Requests.WITH_KEY,
        "the idempotency key was used for a different write.",
    )

    EPOCH_ENDED = (
        "EPOCH_ENDED",
        StatusCode.FAILED_PRECONDITION,
        HTTPStatus.GONE,
        Requests.NONE,
        "the database was restored to an earlier time since; `detail` says what to do.",
    )

    # The service could not decide.
    RATE_LIMITED = (
        "RATE_LIMITED",
        StatusCode.RESOURCE_EXHAUSTED,
        HTTPStatus.TOO_MANY_REQUESTS,
        Requests.ANY,
        "the credential or the organization is above its rate limit; nothing was written.",
    )
    OVERLOADED = (
        "OVERLOADED",
        StatusCode.RESOURCE_EXHAUSTED,
        HTTPStatus.TOO_MANY_REQUESTS,
        Requests.ANY,
        "too many requests are waiting; nothing was written.",
    )
    LOCK_TIMEOUT = (
        "LOCK_TIMEOUT",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "other writes of the organization took too long; nothing was written.",
    )
    DATABASE_UNAVAILABLE = (
        "DATABASE_UNAVAILABLE",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the database did not respond; `detail` says whether a write may have happened.",
    )
    BROKER_UNAVAILABLE = (
        "BROKER_UNAVAILABLE",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the queue did not respond; `detail` says whether a write may have been accepted.",
    )
    SERVICE_STOPPING = (
        "SERVICE_STOPPING",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the process is stopping; send the request again to reach another one.",
    )
    SLOW_READER = (
        "SLOW_READER",
        StatusCode.UNAVAILABLE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the client did not read the stream for too long (only by gRPC, and in logs).",
    )
    SERVICE_UNAVAILABLE = (
        "SERVICE_UNAVAILABLE",
        None,
        HTTPStatus.SERVICE_UNAVAILABLE,
        Requests.ANY,
        "the service cannot be reached; a write may or may not have happened.",
    )
    DEADLINE_EXCEEDED = (
        "DEADLINE_EXCEEDED",
        StatusCode.DEADLINE_EXCEEDED,
        HTTPStatus.GATEWAY_TIMEOUT,
        Requests.ANY,
        "there was no response in time; a write may or may not have happened.",
    )
    OPERATION_FAILED = (
        "OPERATION_FAILED",
        StatusCode.INTERNAL,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        Requests.ANY,
        "an accepted operation could not be applied; `detail` says why.",
    )
    INTERNAL = (
        "INTERNAL",
        StatusCode.INTERNAL,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        Requests.ANY,
        "a bug in the service or the gateway.",
    )

    # gRPC statuses without a reason of the service.
    INVALID_ARGUMENT = (
        "INVALID_ARGUMENT",
        None,
        HTTPStatus.BAD_REQUEST,
        Requests.ANY,
        "the service refused the request without a reason.",
    )
    FAILED_PRECONDITION = (
        "FAILED_PRECONDITION",
        None,
        HTTPStatus.BAD_REQUEST,
        Requests.ANY,
        "the state does not allow the request; no reason was given.",
    )
    OUT_OF_RANGE = (
        "OUT_OF_RANGE",
        None,
        HTTPStatus.BAD_REQUEST,
        Requests.ANY,
        "the request is out of range; no reason was given.",
    )
    NOT_FOUND = (
        "NOT_FOUND",
        None,
        HTTPStatus.NOT_FOUND,
        Requests.BY_ID,
        "the requested object does not exist.",
    )
    ALREADY_EXISTS = (
        "ALREADY_EXISTS",
        None,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "the object already exists.",
    )
    ABORTED = (
        "ABORTED",
        None,
        HTTPStatus.CONFLICT,
        Requests.WRITE,
        "another write interfered.",
    )
    UNIMPLEMENTED = (
        "UNIMPLEMENTED",
        None,
        HTTPStatus.NOT_IMPLEMENTED,
        Requests.NONE,
        "the service is older than the gateway and does not have this method.",
    )
