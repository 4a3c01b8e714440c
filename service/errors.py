"""Why a request is refused: each error has a stable reason and says what to mend."""

from collections.abc import Sequence
from typing import ClassVar, Self

from service.domain import Conflict


class ServiceError(Exception):
    """A refusal that the caller is told about.

    `organization_revision` is set where the database decided. `retry_after` (seconds)
    is set where the same request may succeed later.
    """

    reason: ClassVar[str]
    retry_after: ClassVar[float | None] = None

    def __init__(self, message: str, *, organization_revision: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.organization_revision = organization_revision


class InvalidFields(ServiceError):
    """Fields break rules; all that do are named.

    `violations` are pairs of a field's path in the request and what is wrong with it.
    """

    reason = "INVALID_FIELD"
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


class MalformedRequest(ServiceError):
    reason = "MALFORMED_REQUEST"


class RequestTooLarge(ServiceError):
    reason = "REQUEST_TOO_LARGE"


class TimeRangeTaken(ServiceError):
    """Other active appointments of the resource overlap the range."""

    reason = "TIME_RANGE_CONFLICT"
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


class EtagMismatch(ServiceError):
    reason = "ETAG_MISMATCH"


class AppointmentExists(ServiceError):
    reason = "APPOINTMENT_EXISTS"


class IdempotencyKeyReused(ServiceError):
    reason = "IDEMPOTENCY_KEY_REUSED"


class AppointmentNotFound(ServiceError):
    reason = "APPOINTMENT_NOT_FOUND"


class OperationNotFound(ServiceError):
    reason = "OPERATION_NOT_FOUND"


class OperationFailed(ServiceError):
    """An accepted operation could not be applied; the message says why."""

    reason = "OPERATION_FAILED"


class WebhookNotFound(ServiceError):
    reason = "WEBHOOK_NOT_FOUND"


class WebhookLimitReached(ServiceError):
    reason = "WEBHOOK_LIMIT_REACHED"


class Overloaded(ServiceError):
    """Too much waits already; nothing was written."""

    reason = "OVERLOADED"
    retry_after = 1.0


class LockTimeout(ServiceError):
    """The organization's lock was held by others for too long; nothing was written."""

    reason = "LOCK_TIMEOUT"
    retry_after = 1.0


class DatabaseUnavailable(ServiceError):
    """The database did not answer, or not in time. The message says whether a write is
    certain not to have happened."""

    reason = "DATABASE_UNAVAILABLE"
    retry_after = 1.0


class BrokerUnavailable(ServiceError):
    """RabbitMQ did not take a message, or did not confirm it in time.

    `certain` tells that no queue has it; otherwise it may have been accepted.
    """

    reason = "BROKER_UNAVAILABLE"
    retry_after = 1.0

    def __init__(self, what: str, *, certain: bool) -> None:
        meaning = (
            "nothing was accepted, try again later"
            if certain
            else "whether the message was accepted is not known, it may be sent again"
        )
        super().__init__(f"{what}; {meaning}")
        self.certain = certain


class ServiceStopping(ServiceError):
    """This process stops; another one, or it after its restart, goes on."""

    reason = "SERVICE_STOPPING"
    retry_after = 1.0


class SlowReader(ServiceError):
    """The caller of a stream takes nothing of it."""

    reason = "SLOW_READER"
    retry_after = 1.0


class DeadlineExceeded(ServiceError):
    """The request took too long; a write that was already sent may still happen."""

    reason = "DEADLINE_EXCEEDED"
