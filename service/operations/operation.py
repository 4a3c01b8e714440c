"""Operations: an accepted write, its resource name and its state."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from uuid import UUID

from runtime.tracing import current_span
from service import rules
from service.domain import Write, WriteResult, new_id, traced
from service.errors import InvalidFields, OperationNotFound, ServiceError
from service.times import EPOCH
from service.writes.store import write_parameter

if TYPE_CHECKING:
    from runtime.spans import Span

# An operation is given up after this many database calls for it alone that got no response.
MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An accepted write. Ids order operations by time of acceptance, to the millisecond."""

    organization_id: str
    id: UUID
    accepted_at: datetime
    write: Write
    span: "Span | None" = field(default=None, compare=False)
    """That of the call that submits it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationState:
    """The state of an operation. `result` and `finished_at` are None until it is done."""

    organization_id: str
    id: UUID
    appointment_id: str
    accepted_at: datetime
    finished_at: datetime | None = None
    result: WriteResult | ServiceError | None = None

    @property
    def name(self) -> str:
        return f"{parent_name(self.organization_id)}/operations/{self.id}"


def new_operation(organization_id: str, write: Write) -> Operation:
    """Return a new operation that applies a write."""
    span = current_span.get()
    return Operation(
        organization_id=organization_id,
        id=UUID(new_id()),
        accepted_at=datetime.now(UTC),
        write=write if span is None else traced(write, span.traceparent),
        span=span,
    )


def queued_form(operation: Operation) -> dict[str, Any]:
    """Return an operation in the form in which it is queued and passed to apply_operations."""
    return {
        "organization_id": operation.organization_id,
        "operation_id": operation.id,
        "accepted_at": operation.accepted_at,
        "write": write_parameter(operation.write),
    }


def time_of(id: UUID) -> datetime:
    """Return when a UUIDv7 was created, to the millisecond."""
    return EPOCH + timedelta(milliseconds=id.int >> 80)


def parent_name(organization_id: str) -> str:
    return f"organizations/{quote(organization_id, safe='')}"


def read_parent(name: str) -> str:
    """Return the organization of `organizations/{organization}`. Raises InvalidFields."""
    match name.split("/"):
        case ["organizations", organization] if organization:
            return _read_organization(organization)
    raise InvalidFields([("name", "must be organizations/{organization}")])


def read_name(name: str) -> tuple[str, UUID]:
    """Return the organization and the id of `organizations/{organization}/operations/{id}`.

    Raises InvalidFields for a name of another form, OperationNotFound for an id that is not a
    UUID.
    """
    match name.split("/"):
        case ["organizations", organization, "operations", id] if organization and id:
            organization_id = _read_organization(organization)
            try:
                operation_id = UUID(id)
            except ValueError:
                operation_id = None
            if operation_id is None or str(operation_id) != id:
                raise OperationNotFound("there is no such operation")
            return organization_id, operation_id
    raise InvalidFields([("name", "must be organizations/{organization}/operations/{id}")])


def organization_in(name: str) -> str:
    """Return the organization of the name of an operation or of its parent, also if the rest is
    wrong. Raises InvalidFields.
    """
    match name.split("/"):
        case ["organizations", organization, *_] if organization:
            return _read_organization(organization)
    raise InvalidFields([("name", "must begin with organizations/{organization}")])


def _read_organization(part: str) -> str:
    organization_id = unquote(part)
    if len(organization_id) > rules.MAX_ORGANIZATION:
        problem = f"must name an organization of at most {rules.MAX_ORGANIZATION} characters"
        raise InvalidFields([("name", problem)])
    if rules.CONTROL.search(organization_id):
        raise InvalidFields([("name", "must not contain control characters")])
    return organization_id
