"""Converts the service's errors to gRPC statuses with `google.rpc` details."""

import math
from collections.abc import Sequence
from typing import TypeVar

import grpc
from appointments.v1 import appointment_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from public_json.reasons import DOMAIN, RETRY_DELAY, Reason
from service import messages
from service.errors import (
    BatchRefused,
    InvalidFields,
    PermissionDenied,
    RateLimited,
    ServiceError,
    TimeRangeConflict,
)

# Bytes. The status is sent in the trailers, of which gRPC clients accept 8 KiB (some accept up
# to 16). Its base64 encoding is longer by a third.
MAX_DETAILS = 4 * 1024
# Bytes of the conflicts of an item of an atomic batch, so that several items fit.
MAX_ITEM_CONFLICTS = 512
_INTERNAL = "the service failed; the error is in its log"

Item = TypeVar("Item", bound=Message)

_CODES = {reason: reason.grpc for reason in Reason if reason.grpc is not None}


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the status code of an error: INTERNAL unless it is a ServiceError."""
    return _CODES[_reason_of(error)]


def _reason_of(error: Exception) -> Reason:
    return error.reason if isinstance(error, ServiceError) else Reason.INTERNAL


def status_of(error: Exception, *, max_details: int = MAX_DETAILS) -> Status:
    """Return the status of an error. Internal errors have a fixed message and no details.

    `max_details` bounds the size of the lists of conflicts and violations, in bytes. As many
    of the first items are listed as fit.
    """
    reason = _reason_of(error)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    if isinstance(error, PermissionDenied) and error.scope:
        info.metadata["scope"] = error.scope
    details: list[Message] = [info]
    if isinstance(error, InvalidFields):
        violation = error_details_pb2.BadRequest.FieldViolation
        named = [violation(field=field, description=text) for field, text in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=_fitting(named, max_details)))
    if isinstance(error, TimeRangeConflict):
        details.append(_conflict(error, max_details))
    if isinstance(error, BatchRefused):
        items = [_refused_item(index, refused) for index, refused in error.errors.items()]
        shown = _fitting(items, max_details)
        details.append(pb.BatchRefusal(items=shown, more_items=len(shown) < len(items)))
    if reason.temporary:
        delay = Duration()
        delay.FromMilliseconds(
            math.ceil(error.retry_after * 1000)
            if isinstance(error, RateLimited)
            else RETRY_DELAY * 1000
        )
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    message = error.message if isinstance(error, ServiceError) else _INTERNAL
    status = Status(code=code_of(error).value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _conflict(error: TimeRangeConflict, max_details: int) -> pb.TimeRangeConflict:
    conflicts = [messages.conflict(found) for found in error.conflicts]
    # At most 20 of some 30 bytes.
    alternatives = [messages.time_range(free) for free in error.alternatives]
    listed = _fitting(conflicts, max_details - sum(free.ByteSize() for free in alternatives))
    return pb.TimeRangeConflict(
        conflicts=listed,
        more_conflicts=error.more_conflicts or len(listed) < len(conflicts),
        alternatives=alternatives,
    )


def _refused_item(index: int, error: ServiceError) -> pb.BatchRefusal.Item:
    item = pb.BatchRefusal.Item(index=index, code=error.reason, detail=error.message)
    if isinstance(error, TimeRangeConflict):
        conflict = _conflict(error, MAX_ITEM_CONFLICTS)
        item.conflicts.extend(conflict.conflicts)
        item.more_conflicts = conflict.more_conflicts
    return item


def _fitting(items: Sequence[Item], max_bytes: int) -> list[Item]:
    """Return as many of the first items as fit."""
    fitting: list[Item] = []
    for item in items:
        max_bytes -= item.ByteSize() + 4  # tag and length
        if max_bytes < 0:
            break
        fitting.append(item)
    return fitting
