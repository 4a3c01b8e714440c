"""Why a request is refused: each error has a reason and says what to change."""

from collections.abc import Sequence
from typing import ClassVar, Self

from public_json.reasons import Reason
from service.domain import Conflict


class ServiceError(Exception):
    """A refusal that the caller is told about.

    Every subclass names its reason, which decides the gRPC code and the HTTP status. Without
    one, mypy and the import fail. `organization_revision` is set where the database decided.
    """

    reason: ClassVar[Reason]

    def __init_subclass__(cls, *, reason: Reason) -> None:
        """Set the reason. Raises TypeError for one that the gateway alone gives."""
        super().__init_subclass__()
        if reason.grpc is None:
            raise TypeError(f"{cls.__name__}: the reason {reason} has no gRPC code")
        cls.reason = reason

    def __init__(self, message: str, *, organization_revision: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.organization_revision = organization_revision


class InvalidFields(ServiceError, reason=Reason.INVALID_FIELD):
    """Fields break rules; all that do are named.

    `violations` are pairs of a field's path in the request and what is wrong with it.
    """

    SPELLED_OUT = 10

    def __init__(
        self, violations: Sequence[tuple[str, str]], *, organization_revision: int | None = None
    ) -> None:
        text = "; ".join(f"{field}: {detail}" for field, detail in violations[: self.SPELLED_OUT])
        more = len(violations) - self.SPELLED_OUT
        super().__init__(
            f"{text}; and {more} more" if more > 0 else text,
            organization_revision=organization_revision,
        )
        self.violations = violations

    @classmethod
    def beyond_latest(cls, field: str, revision: int) -> Self:
        """Refuse a revision that the organization, at `revision`, does not have yet."""
        return cls(
            [(field, f"must not be beyond the organization's revision, {revision}")],
            organization_revision=revision,
        )


class MalformedRequest(ServiceError, reason=Reason.MALFORMED_REQUEST):
    """The request is no message of its method."""


class RequestTooLarge(ServiceError, reason=Reason.REQUEST_TOO_LARGE):
    """The message is larger than the service takes."""


class TimeRangeTaken(ServiceError, reason=Reason.TIME_RANGE_CONFLICT):
    """Other active appointments of the resource overlap the range."""

    LISTED = 20

    def __init__(
        self, overlapping: Sequence[Conflict], *, organization_revision: int | None = None
    ) -> None:
        self.conflicts = overlapping[: self.LISTED]
        self.more_conflicts = len(overlapping) > self.LISTED
        super().__init__(
            "the time range is taken; choose another",
            organization_revision=organization_revision,
        )


class EtagMismatch(ServiceError, reason=Reason.ETAG_MISMATCH):
    """What is stored has another etag than the write expects."""


class AppointmentExists(ServiceError, reason=Reason.APPOINTMENT_EXISTS):
    """The id was to be new, and is stored."""


class IdempotencyKeyReused(ServiceError, reason=Reason.IDEMPOTENCY_KEY_REUSED):
    """Another write has this idempotency key."""


class AppointmentNotFound(ServiceError, reason=Reason.APPOINTMENT_NOT_FOUND):
    """The organization has no such appointment, or had none at that time."""


class OperationNotFound(ServiceError, reason=Reason.OPERATION_NOT_FOUND):
    """The organization has no such operation, or no longer."""


class OperationFailed(ServiceError, reason=Reason.OPERATION_FAILED):
    """An accepted operation could not be applied; the message says why."""


class WebhookNotFound(ServiceError, reason=Reason.WEBHOOK_NOT_FOUND):
    """The organization has no such webhook."""


class WebhookLimitReached(ServiceError, reason=Reason.WEBHOOK_LIMIT_REACHED):
    """The organization has as many webhooks as it may have."""


class Overloaded(ServiceError, reason=Reason.OVERLOADED):
    """Too much waits already; nothing was written."""


class LockTimeout(ServiceError, reason=Reason.LOCK_TIMEOUT):
    """The organization's lock was held by others for too long; nothing was written."""


class DatabaseUnavailable(ServiceError, reason=Reason.DATABASE_UNAVAILABLE):
    """The database did not answer, or not in time. The message says whether a write is
    certain not to have happened."""


class BrokerUnavailable(ServiceError, reason=Reason.BROKER_UNAVAILABLE):
    """RabbitMQ did not take a message, or did not confirm it in time.

    `certain` tells that no queue has it; otherwise it may have been accepted.
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
    """This process stops; another one, or it after its restart, goes on."""


class SlowReader(ServiceError, reason=Reason.SLOW_READER):
    """The caller of a stream takes nothing of it."""


class DeadlineExceeded(ServiceError, reason=Reason.DEADLINE_EXCEEDED):
    """The request took too long; a write that was already sent may still happen."""
