"""The one table from the service's errors to gRPC statuses with `google.rpc` details."""

import math
from collections.abc import Sequence
from typing import TypeVar

import grpc
from appointments.v1 import appointment_pb2 as pb
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from service import messages
from service.errors import (
    AppointmentExists,
    AppointmentNotFound,
    BrokerUnavailable,
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    IdempotencyKeyReused,
    InvalidFields,
    LockTimeout,
    MalformedRequest,
    OperationFailed,
    OperationNotFound,
    Overloaded,
    RequestTooLarge,
    ServiceError,
    ServiceStopping,
    SlowReader,
    TimeRangeTaken,
    WebhookLimitReached,
    WebhookNotFound,
)

DOMAIN = "appointments.v1"
# Details and message travel as trailers, of which a gRPC client takes 8 KiB (16 at the
# very most); encoded they grow by a third.
MAX_DETAILS = 4 * 1024

Item = TypeVar("Item", bound=Message)

_CODES: dict[type[ServiceError], grpc.StatusCode] = {
    InvalidFields: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedRequest: grpc.StatusCode.INVALID_ARGUMENT,
    IdempotencyKeyReused: grpc.StatusCode.INVALID_ARGUMENT,
    TimeRangeTaken: grpc.StatusCode.ALREADY_EXISTS,
    AppointmentExists: grpc.StatusCode.ALREADY_EXISTS,
    EtagMismatch: grpc.StatusCode.ABORTED,
    AppointmentNotFound: grpc.StatusCode.NOT_FOUND,
    OperationNotFound: grpc.StatusCode.NOT_FOUND,
    OperationFailed: grpc.StatusCode.INTERNAL,
    WebhookNotFound: grpc.StatusCode.NOT_FOUND,
    WebhookLimitReached: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    # As gRPC itself says it of a message that is too large before it is inflated.
    RequestTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LockTimeout: grpc.StatusCode.UNAVAILABLE,
    DatabaseUnavailable: grpc.StatusCode.UNAVAILABLE,
    BrokerUnavailable: grpc.StatusCode.UNAVAILABLE,
    ServiceStopping: grpc.StatusCode.UNAVAILABLE,
    SlowReader: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of an error; what is not a ServiceError is our fault."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)  # type: ignore[arg-type]


def status_of(error: Exception, *, max_details: int = MAX_DETAILS) -> Status:
    """Return the status of an error, without any detail of one that is our fault.

    `max_details` bounds the bytes of the details: of conflicts and violations as many
    are listed as find room.
    """
    if not isinstance(error, ServiceError):
        info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
        return _status(grpc.StatusCode.INTERNAL, "the service failed; the fault is logged", [info])
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, InvalidFields):
        violation = error_details_pb2.BadRequest.FieldViolation
        named = [violation(field=field, description=text) for field, text in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=_fitting(named, max_details)))
    if isinstance(error, TimeRangeTaken):
        conflicts = [messages.conflict(found) for found in error.conflicts]
        listed = _fitting(conflicts, max_details)
        details.append(
            pb.TimeRangeConflict(
                conflicts=listed,
                more_conflicts=error.more_conflicts or len(listed) < len(conflicts),
            )
        )
    if error.retry_after is not None:
        delay = Duration(seconds=math.ceil(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(_CODES[type(error)], error.message, details)


def _fitting(items: Sequence[Item], max_bytes: int) -> list[Item]:
    """Return as many of the first items as find room."""
    fitting: list[Item] = []
    for item in items:
        max_bytes -= item.ByteSize() + 4  # tag and length
        if max_bytes < 0:
            break
        fitting.append(item)
    return fitting


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> Status:
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
