"""The one table from the service's errors to gRPC statuses with `google.rpc` details."""

import math

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
    DatabaseUnavailable,
    DeadlineExceeded,
    EtagMismatch,
    IdempotencyKeyReused,
    InvalidFields,
    LockTimeout,
    MalformedRequest,
    Overloaded,
    ServiceError,
    TimeRangeTaken,
)

DOMAIN = "appointments.v1"

_CODES: dict[type[ServiceError], grpc.StatusCode] = {
    InvalidFields: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedRequest: grpc.StatusCode.INVALID_ARGUMENT,
    IdempotencyKeyReused: grpc.StatusCode.INVALID_ARGUMENT,
    TimeRangeTaken: grpc.StatusCode.ALREADY_EXISTS,
    AppointmentExists: grpc.StatusCode.ALREADY_EXISTS,
    EtagMismatch: grpc.StatusCode.ABORTED,
    AppointmentNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LockTimeout: grpc.StatusCode.UNAVAILABLE,
    DatabaseUnavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of an error; what is not a ServiceError is our fault."""
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)  # type: ignore[arg-type]


def status_of(error: Exception) -> Status:
    """Return the status of an error, without any detail of one that is our fault."""
    if not isinstance(error, ServiceError):
        info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
        return _status(grpc.StatusCode.INTERNAL, "the service failed; the fault is logged", [info])
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, InvalidFields):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=detail)
                    for field, detail in error.violations
                ]
            )
        )
    if isinstance(error, TimeRangeTaken):
        details.append(
            pb.TimeRangeConflict(
                conflicts=[messages.conflict(found) for found in error.conflicts],
                more_conflicts=error.more_conflicts,
            )
        )
    if error.retry_after is not None:
        delay = Duration(seconds=math.ceil(error.retry_after))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return _status(_CODES[type(error)], error.message, details)


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> Status:
    status = Status(code=code.value[0], message=message)
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status
