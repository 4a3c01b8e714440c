"""What ends a command, and what the service's errors say."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import grpc
from appointments.v1.appointment_pb2 import TimeRangeConflict
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

# Exit codes. 0: everything was done.
SOME_REFUSED = 1
USAGE = 2
SERVICE_FAILED = 3
INTERRUPTED = 130

# A service that stops may cancel calls. What the command itself cancels, it does not look at.
_TEMPORARY = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    )
)
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


class CommandError(Exception):
    """Ends the command with a message of one line and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error of the service. `reason` is that of the API, or the name of the gRPC code."""

    reason: str
    detail: str
    conflicts: list[TimeRangeConflict.Conflict] = field(default_factory=list)
    more_conflicts: bool = False
    retry_after: float = 0
    temporary: bool = False
    """The same request may succeed later: after `retry_after` seconds, if that is not 0."""

    @classmethod
    def of(cls, status: Status) -> "Fault":
        """Read a `google.rpc.Status` and its details."""
        info, taken, bad, retry = ErrorInfo(), TimeRangeConflict(), BadRequest(), RetryInfo()
        for item in status.details:
            any(item.Unpack(known) for known in (info, taken, bad, retry))
        fields = "; ".join(f"{item.field}: {item.description}" for item in bad.field_violations)
        after = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(
            reason=info.reason or _NAMES.get(status.code, str(status.code)),
            detail=fields or status.message,
            conflicts=list(taken.conflicts),
            more_conflicts=taken.more_conflicts,
            retry_after=after,
            temporary=status.code in _TEMPORARY or after > 0,
        )

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def fault_of(error: grpc.RpcError) -> Fault:
    """Return what a failed call says."""
    call = cast("grpc.Call", error)
    trailers = cast("Iterable[tuple[str, bytes]]", call.trailing_metadata() or ())
    details = dict(trailers).get("grpc-status-details-bin")
    if details is not None:
        return Fault.of(Status.FromString(details))
    return Fault.of(Status(code=call.code().value[0], message=call.details() or ""))
