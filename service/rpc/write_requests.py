"""Reads the requests of writes. All invalid fields of a request are reported together."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.field_mask_pb2 import FieldMask

from service import messages, rules
from service.domain import (
    Cancel,
    Confirm,
    Redact,
    Update,
    Upsert,
    Write,
    expected_revision,
    new_id,
)
from service.errors import InvalidFields
from service.postgres.epochs import FIRST

WriteRequest = (
    rpc.UpsertAppointmentRequest
    | rpc.UpdateAppointmentRequest
    | rpc.ConfirmAppointmentRequest
    | rpc.CancelAppointmentRequest
    | rpc.RedactAppointmentRequest
)

_PREFIX = "appointment."
_MASK: Final = "update_mask"

# The fields that an update can change.
_FIELDS = (
    "resource_id",
    "additional_resource_ids",
    "start",
    "end",
    "title",
    "attributes",
    "created_at",
    "updated_at",
    "hold_until",
)


class _Content(NamedTuple):
    """The fields of an appointment that a caller sets. None is an absent or invalid time."""

    start: datetime | None
    end: datetime | None
    attributes: str
    created_at: datetime | None
    updated_at: datetime | None
    hold_until: datetime | None


class WriteReader:
    """Converts requests to writes. Appointments are held for at most `max_hold`.

    `epoch` returns that of the database: no etag of another one is that of a stored appointment.
    """

    def __init__(self, max_hold: timedelta, epoch: Callable[[], str] = lambda: FIRST) -> None:
        self._max_hold = max_hold
        self._epoch = epoch

    def read(self, request: WriteRequest, *, actor: str) -> Write:
        """Convert any request of a write. Raises InvalidFields, naming every invalid field."""
        if isinstance(request, rpc.UpsertAppointmentRequest):
            return self.upsert(
                request,
                validate_only=request.validate_only,
                suggest=request.suggest,
                actor=actor,
            )
        if isinstance(request, rpc.UpdateAppointmentRequest):
            return self._update(request, actor)
        if isinstance(request, rpc.ConfirmAppointmentRequest):
            return self._confirm(request, actor)
        if isinstance(request, rpc.RedactAppointmentRequest):
            return self._redact(request)
        return self._cancel(request, actor)

    def upsert(
        self,
        request: rpc.UpsertAppointmentRequest | rpc.BatchUpsertAppointmentsRequest.Item,
        *,
        validate_only: bool,
        actor: str,
        suggest: int = 0,
    ) -> Upsert:
        """Convert an upsert. Raises InvalidFields, naming every invalid field."""
        violations: rules.Violations = []
        wanted = _appointment(request, violations)
        content = _read_content(wanted, violations, required=("start", "end"))
        etag = _etag(request, violations)
        if violations or content.start is None or content.end is None:
            raise InvalidFields(violations)
        return Upsert(
            id=wanted.id or new_id(),
            id_given=bool(wanted.id),
            resource_id=wanted.resource_id,
            additional_resource_ids=tuple(wanted.additional_resource_ids),
            start=content.start,
            end=content.end,
            title=wanted.title,
            attributes=content.attributes,
            created_at=content.created_at,
            updated_at=content.updated_at,
            hold_until=content.hold_until,
            max_hold=self._max_hold,
            expected_revision=expected_revision(etag, self._epoch()),
            create_only=request.create_only,
            idempotency_key=request.idempotency_key or None,
            validate_only=validate_only,
            suggest=suggest,
            actor=actor,
        )

    def _update(self, request: rpc.UpdateAppointmentRequest, actor: str) -> Update:
        violations: rules.Violations = []
        wanted = _appointment(request, violations)
        if not wanted.id:
            violations.append((_PREFIX + "id", "is required"))
        fields = _read_mask(request, violations)
        # An appointment always has a range.
        always: tuple[Literal["start", "end"], ...] = ("start", "end")
        content = _read_content(
            wanted,
            violations,
            required=always if request.allow_missing else tuple(fields.intersection(always)),
        )
        if request.allow_missing and request.HasField(_MASK):
            violations += [
                (_MASK, f"must name {name} with allow_missing")
                for name in always
                if wanted.HasField(name) and name not in fields
            ]
        patch = None
        if request.HasField("attributes_patch"):
            patch = rules.read_attributes(request.attributes_patch, "attributes_patch", violations)
            if "attributes" in fields:
                violations.append(("attributes_patch", "must not be given with attributes"))
        etag = _etag(request, violations)
        if violations:
            raise InvalidFields(violations)
        return Update(
            id=wanted.id,
            fields=fields,
            resource_id=wanted.resource_id,
            additional_resource_ids=tuple(wanted.additional_resource_ids),
            start=content.start,
            end=content.end,
            title=wanted.title,
            attributes=content.attributes,
            attributes_patch=patch,
            created_at=content.created_at,
            updated_at=content.updated_at,
            hold_until=content.hold_until,
            max_hold=self._max_hold,
            allow_missing=request.allow_missing,
            expected_revision=expected_revision(etag, self._epoch()),
            idempotency_key=request.idempotency_key or None,
            validate_only=request.validate_only,
            actor=actor,
        )

    def _confirm(self, request: rpc.ConfirmAppointmentRequest, actor: str) -> Confirm:
        messages.check(request)
        return Confirm(
            id=request.id,
            expected_revision=expected_revision(request.etag, self._epoch()),
            idempotency_key=request.idempotency_key or None,
            validate_only=request.validate_only,
            actor=actor,
        )

    def _cancel(self, request: rpc.CancelAppointmentRequest, actor: str) -> Cancel:
        [updated_at] = messages.check(request, "updated_at")
        return Cancel(
            id=request.id,
            updated_at=updated_at,
            expected_revision=expected_revision(request.etag, self._epoch()),
            idempotency_key=request.idempotency_key or None,
            validate_only=request.validate_only,
            actor=actor,
        )

    def _redact(self, request: rpc.RedactAppointmentRequest) -> Redact:
        messages.check(request)
        return Redact(
            id=request.id,
            expected_revision=expected_revision(request.etag, self._epoch()),
            idempotency_key=request.idempotency_key or None,
            validate_only=request.validate_only,
        )


def organization_of(request: WriteRequest) -> str:
    """Return the organization of a request, or the default."""
    if isinstance(request, rpc.UpsertAppointmentRequest | rpc.UpdateAppointmentRequest):
        return messages.organization_of(request.appointment)
    return messages.organization_of(request)


def _appointment(request: Any, violations: rules.Violations) -> pb.Appointment:  # noqa: ANN401
    """Check a request's own fields and return its appointment, whose fields are checked too.

    Raises InvalidFields if it has none.
    """
    rules.check_fields(request, "", violations)
    if not request.HasField("appointment"):
        violations.append(("appointment", "is required"))
        raise InvalidFields(violations)
    appointment: pb.Appointment = request.appointment
    rules.check_fields(appointment, _PREFIX, violations)
    return appointment


def _read_content(
    wanted: pb.Appointment, violations: rules.Violations, *, required: tuple[str, ...]
) -> _Content:
    start = rules.read_time(wanted, "start", _PREFIX, violations, required="start" in required)
    end = rules.read_time(wanted, "end", _PREFIX, violations, required="end" in required)
    rules.check_range(start, end, _PREFIX, violations)
    if wanted.additional_resource_ids:
        rules.check_resources(
            wanted.resource_id,
            wanted.additional_resource_ids,
            f"{_PREFIX}additional_resource_ids",
            violations,
        )
    return _Content(
        start=start,
        end=end,
        attributes=rules.read_attributes(wanted.attributes, f"{_PREFIX}attributes", violations),
        created_at=rules.read_time(wanted, "created_at", _PREFIX, violations),
        updated_at=rules.read_time(wanted, "updated_at", _PREFIX, violations),
        hold_until=rules.read_time(wanted, "hold_until", _PREFIX, violations),
    )


def _etag(request: Any, violations: rules.Violations) -> str:  # noqa: ANN401
    """Return the etag that a write expects, from the request or its appointment."""
    given: str = request.etag
    stated: str = request.appointment.etag
    if given and stated and given != stated:
        violations.append(("etag", "must be the same as the appointment's etag, or left out there"))
    return given or stated


def _read_mask(
    request: rpc.UpdateAppointmentRequest, violations: rules.Violations
) -> frozenset[str]:
    """Return the fields that an update changes (AIP-134)."""
    mask: FieldMask = request.update_mask
    if list(mask.paths) == ["*"]:
        return frozenset(_FIELDS)
    if not request.HasField(_MASK):
        present = {descriptor.name for descriptor, _ in request.appointment.ListFields()}
        return frozenset(present.intersection(_FIELDS))
    named = frozenset(mask.paths)
    unknown = sorted(named.difference(_FIELDS))[: InvalidFields.MAX_IN_MESSAGE]
    violations += [
        (_MASK, f"must name only {', '.join(_FIELDS)}, or * alone; not {path[:100]!r}")
        for path in unknown
    ]
    return named.intersection(_FIELDS)
