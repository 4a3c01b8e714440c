"""Every reason for which a request is refused: its HTTP status, and what it means.

The one list of them: answers take their status from it, and the OpenAPI document its
`code` and the responses of every status.
"""

from enum import StrEnum
from http import HTTPStatus
from typing import Self


class Reason(StrEnum):
    """The `code` of a problem, stable, for programs to go by."""

    http: HTTPStatus
    meaning: str

    def __new__(cls, code: str, http: HTTPStatus, meaning: str) -> Self:
        """Make a reason; `meaning` goes on after its name in the OpenAPI document."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.http = http
        reason.meaning = meaning
        return reason

    # What is wrong with the request itself.
    INVALID_FIELD = (
        "INVALID_FIELD",
        HTTPStatus.BAD_REQUEST,
        "fields, parameters or headers break rules; `errors` names every one.",
    )
    MALFORMED_REQUEST = (
        "MALFORMED_REQUEST",
        HTTPStatus.BAD_REQUEST,
        "it cannot be read at all: it is not HTTP, or its body is not JSON.",
    )
    ROUTE_NOT_FOUND = ("ROUTE_NOT_FOUND", HTTPStatus.NOT_FOUND, "there is nothing at this path.")
    METHOD_NOT_ALLOWED = (
        "METHOD_NOT_ALLOWED",
        HTTPStatus.METHOD_NOT_ALLOWED,
        "the path does not take this method; `Allow` lists those it takes.",
    )
    METHOD_NOT_IMPLEMENTED = (
        "METHOD_NOT_IMPLEMENTED",
        HTTPStatus.NOT_IMPLEMENTED,
        "no path takes this method, which HTTP does not know.",
    )
    URI_TOO_LONG = (
        "URI_TOO_LONG",
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "the URL is longer than is taken.",
    )
    HEADERS_TOO_LARGE = (
        "HEADERS_TOO_LARGE",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "a header is longer than is taken, or there are too many.",
    )
    REQUEST_TIMEOUT = (
        "REQUEST_TIMEOUT",
        HTTPStatus.REQUEST_TIMEOUT,
        "the body took too long to arrive.",
    )
    REQUEST_TOO_LARGE = (
        "REQUEST_TOO_LARGE",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "the body is larger than is taken.",
    )
    UNSUPPORTED_MEDIA_TYPE = (
        "UNSUPPORTED_MEDIA_TYPE",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "the body is not JSON in UTF-8, or it is compressed.",
    )

    # What the stored state has against it.
    APPOINTMENT_NOT_FOUND = (
        "APPOINTMENT_NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "the organization has no such appointment, or had none at that time.",
    )
    OPERATION_NOT_FOUND = (
        "OPERATION_NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "the organization has no such operation, or has it no longer.",
    )
    WEBHOOK_NOT_FOUND = (
        "WEBHOOK_NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "the organization has no such webhook.",
    )
    TIME_RANGE_CONFLICT = (
        "TIME_RANGE_CONFLICT",
        HTTPStatus.CONFLICT,
        "the time range is taken; `conflicts` lists by what.",
    )
    WEBHOOK_LIMIT_REACHED = (
        "WEBHOOK_LIMIT_REACHED",
        HTTPStatus.CONFLICT,
        "the organization has as many webhooks as it may have.",
    )
    ETAG_MISMATCH = (
        "ETAG_MISMATCH",
        HTTPStatus.PRECONDITION_FAILED,
        "what is stored has another etag: somebody else changed it.",
    )
    APPOINTMENT_EXISTS = (
        "APPOINTMENT_EXISTS",
        HTTPStatus.PRECONDITION_FAILED,
        "the id was to be new, and is not.",
    )
    IDEMPOTENCY_KEY_REUSED = (
        "IDEMPOTENCY_KEY_REUSED",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the idempotency key is that of another write.",
    )

    # What keeps the service from deciding.
    OVERLOADED = (
        "OVERLOADED",
        HTTPStatus.TOO_MANY_REQUESTS,
        "too much is waiting already; nothing was written.",
    )
    LOCK_TIMEOUT = (
        "LOCK_TIMEOUT",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "other writes of the organization took too long; nothing was written.",
    )
    DATABASE_UNAVAILABLE = (
        "DATABASE_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the database did not answer; `detail` says whether a write may have happened.",
    )
    BROKER_UNAVAILABLE = (
        "BROKER_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the queue did not answer; `detail` says whether a write may have been accepted.",
    )
    SERVICE_STOPPING = (
        "SERVICE_STOPPING",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the process that was asked stops; another one goes on.",
    )
    SLOW_READER = (
        "SLOW_READER",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "nothing of a stream was taken for too long (in logs, and of gRPC).",
    )
    SERVICE_UNAVAILABLE = (
        "SERVICE_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the service is out of reach; a write may or may not have happened.",
    )
    DEADLINE_EXCEEDED = (
        "DEADLINE_EXCEEDED",
        HTTPStatus.GATEWAY_TIMEOUT,
        "there was no answer in time; a write may or may not have happened.",
    )
    OPERATION_FAILED = (
        "OPERATION_FAILED",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "an accepted operation could not be applied; `detail` says why.",
    )
    INTERNAL = ("INTERNAL", HTTPStatus.INTERNAL_SERVER_ERROR, "our fault.")

    # What gRPC alone says, without a reason of the service's own.
    INVALID_ARGUMENT = (
        "INVALID_ARGUMENT",
        HTTPStatus.BAD_REQUEST,
        "the service did not take the request, and did not say why.",
    )
    FAILED_PRECONDITION = (
        "FAILED_PRECONDITION",
        HTTPStatus.BAD_REQUEST,
        "the request does not fit the state, and nothing more is known.",
    )
    OUT_OF_RANGE = (
        "OUT_OF_RANGE",
        HTTPStatus.BAD_REQUEST,
        "the request is out of range, and nothing more is known.",
    )
    UNAUTHENTICATED = ("UNAUTHENTICATED", HTTPStatus.UNAUTHORIZED, "credentials are needed.")
    PERMISSION_DENIED = ("PERMISSION_DENIED", HTTPStatus.FORBIDDEN, "this is not allowed.")
    NOT_FOUND = ("NOT_FOUND", HTTPStatus.NOT_FOUND, "there is no such thing.")
    ALREADY_EXISTS = ("ALREADY_EXISTS", HTTPStatus.CONFLICT, "it exists already.")
    ABORTED = ("ABORTED", HTTPStatus.CONFLICT, "another write came between.")
    UNIMPLEMENTED = (
        "UNIMPLEMENTED",
        HTTPStatus.NOT_IMPLEMENTED,
        "the service is older than the gateway and does not have this method.",
    )
