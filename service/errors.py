"""The errors of the service. Each has a reason, and a message that says what to change."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from public_json.reasons import Reason
from service.domain import Conflict, TimeRange


class ServiceError(Exception):
    """An error that is returned to the caller.

    Every subclass names its reason, which decides the gRPC code and the HTTP status. Without
    a reason, mypy and the import fail. `organization_revision` is set if the database decided.
    """

    reason: ClassVar[Reason]

    def __init_subclass__(cls, *, reason: Reason) -> None:
        """Set the reason. Raises TypeError for a reason that only the gateway uses."""
        super().__init_subclass__()
        if reason.grpc is None:
            raise TypeError(f"{cls.__name__}: the reason {reason} has no gRPC code")
        cls.reason = reason

    def __init__(self, message: str, *, organization_revision: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.organization_revision = organization_revision


class InvalidFields(ServiceError, reason=Reason.INVALID_FIELD):
    """Fields are invalid; all of them are named.

    `violations` are pairs of a field's path in the request and what is wrong with it.
    """

    MAX_IN_MESSAGE = 10

    def __init__(
        self, violations: Sequence[tuple[str, str]], *, organization_revision: int | None = None
    ) -> None:
        listed = violations[: self.MAX_IN_MESSAGE]
        text = "; ".join(f"{field}: {detail}" for field, detail in listed)
        more = len(violations) - self.MAX_IN_MESSAGE
        super().__init__(
            f"{text}; and {more} more" if more > 0 else text,
            organization_revision=organization_revision,
        )
        self.violations = violations

    @classmethod
    def beyond_latest(cls, field: str, revision: int) -> Self:
        """Return the error for a revision beyond the organization's latest, `revision`."""
        return cls(
            [(field, f"must not be beyond the organization's revision, {revision}")],
            organization_revision=revision,
        )


class MalformedRequest(ServiceError, reason=Reason.MALFORMED_REQUEST):
    """The request cannot be parsed as the message of its method."""


class RequestTooLarge(ServiceError, reason=Reason.REQUEST_TOO_LARGE):
    """The message is too large."""


class TimeRangeConflict(ServiceError, reason=Reason.TIME_RANGE_CONFLICT):
    """Other appointments occupy a resource in the range.

    `alternatives` are free ranges, if the write asked for them.
    """

    MAX_LISTED = 20

    def __init__(
        self,
        overlapping: Sequence[Conflict],
        alternatives: Sequence[TimeRange] = (),
        *,
        organization_revision: int | None = None,
    ) -> None:
        self.alternatives = alternatives
        self.conflicts = overlapping[: self.MAX_LISTED]
        self.more_conflicts = len(overlapping) > self.MAX_LISTED
        super().__init__(
            "the time range is taken; choose another",
            organization_revision=organization_revision,
        )


class EtagMismatch(ServiceError, reason=Reason.ETAG_MISMATCH):
    """The stored appointment does not have the expected etag."""


class AppointmentExists(ServiceError, reason=Reason.APPOINTMENT_EXISTS):
    """The id should be new but exists."""


class AppointmentCancelled(ServiceError, reason=Reason.APPOINTMENT_CANCELLED):
    """The appointment is cancelled, so it can be neither changed nor confirmed."""


class HoldExpired(ServiceError, reason=Reason.HOLD_EXPIRED):
    """The hold has expired, so the appointment can be neither changed nor confirmed."""


class AppointmentFirm(ServiceError, reason=Reason.APPOINTMENT_FIRM):
    """A firm appointment cannot be held."""


class BatchRefused(ServiceError, reason=Reason.BATCH_REFUSED):
    """An atomic batch was refused; nothing was written. `errors` are those of its items.

    Of the items in conflict, apply_atomically names at most MAX_NAMED.
    """

    MAX_NAMED = 64

    def __init__(
        self, errors: Mapping[int, ServiceError], *, organization_revision: int | None = None
    ) -> None:
        more = " or more" if len(errors) >= self.MAX_NAMED else ""
        super().__init__(
            f"nothing was written; refused items: {len(errors)}{more}",
            organization_revision=organization_revision,
        )
        self.errors = errors


class IdempotencyKeyReused(ServiceError, reason=Reason.IDEMPOTENCY_KEY_REUSED):
    """The idempotency key was used for a different write."""


class AppointmentNotFound(ServiceError, reason=Reason.APPOINTMENT_NOT_FOUND):
    """The organization has no such appointment, or had none at that time."""


class EpochEnded(ServiceError, reason=Reason.EPOCH_ENDED):
    """The database was restored to an earlier time since the caller read what it refers to."""

    @classmethod
    def of(cls, what: str, *, organization_revision: int | None = None) -> Self:
        """Return the error for a position in the changes or a list that is of another epoch."""
        return cls(
            f"{what} is of another epoch: the database was restored to an earlier time; discard"
            " what was read and begin anew",
            organization_revision=organization_revision,
        )


class OperationNotFound(ServiceError, reason=Reason.OPERATION_NOT_FOUND):
    """The organization has no such operation, or its result has expired."""


class OperationFailed(ServiceError, reason=Reason.OPERATION_FAILED):
    """An accepted operation could not be applied; the message says why."""


class WebhookNotFound(ServiceError, reason=Reason.WEBHOOK_NOT_FOUND):
    """The organization has no such webhook."""


class WebhookLimitReached(ServiceError, reason=Reason.WEBHOOK_LIMIT_REACHED):
    """The organization has the maximum number of webhooks."""


class Unauthenticated(ServiceError, reason=Reason.UNAUTHENTICATED):
    """The call has no credential, or one that is not valid. The message never contains it."""


class PermissionDenied(ServiceError, reason=Reason.PERMISSION_DENIED):
    """The credential does not allow the call. Decided before anything is read.

    `scope` is the one that it lacks, empty if it lacks none.
    """

    def __init__(self, message: str, *, scope: str = "") -> None:
        super().__init__(message)
        self.scope = scope


class AccessUnavailable(ServiceError, reason=Reason.ACCESS_UNAVAILABLE):
    """Credentials cannot be checked at the moment, so the call was refused."""


class RateLimited(ServiceError, reason=Reason.RATE_LIMITED):
    """The credential or the organization has made too many calls.

    `retry_after` (seconds) is when the next one is admitted. `headers` are the values of
    RateLimit-Policy and RateLimit.
    """

    def __init__(self, message: str, *, retry_after: float, headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.headers = headers


class Overloaded(ServiceError, reason=Reason.OVERLOADED):
    """Too many requests are waiting; nothing was written."""


class LockTimeout(ServiceError, reason=Reason.LOCK_TIMEOUT):
    """The organization's lock was held by others for too long; nothing was written."""


class DatabaseUnavailable(ServiceError, reason=Reason.DATABASE_UNAVAILABLE):
    """The database did not respond in time. The message says whether a write may have
    happened."""


class BrokerUnavailable(ServiceError, reason=Reason.BROKER_UNAVAILABLE):
    """RabbitMQ did not accept or confirm a message in time.

    If `certain`, no queue has the message; otherwise it may have been accepted.
    """

    def __init__(self, what: str, *, certain: bool) -> None:
        meaning = (
            "nothing was accepted, try again later"
            if certain
            else "whether the message was accepted is not known, it may be sent again"
        )
        super().__init__(f"{what}; {meaning}")
        self.certain = certain


class ServiceStopping(ServiceError, reason=Reason.SERVICE_STOPPING):
    """This process is stopping. A retry reaches another process, or this one restarted."""


class SlowReader(ServiceError, reason=Reason.SLOW_READER):
    """The caller of a stream reads nothing from it."""


class DeadlineExceeded(ServiceError, reason=Reason.DEADLINE_EXCEEDED):
    """The request took too long; a write that was already sent may still happen."""
