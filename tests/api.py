"""A gRPC client for tests: short calls, and errors with their details unpacked."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

# A Monday; tests count minutes from here.
MORNING = datetime(2030, 1, 7, 8, tzinfo=UTC)
TIMEOUT = 30.0


def at(minute: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(MORNING + timedelta(minutes=minute))
    return timestamp


def appointment(
    organization: str, id: str | None, start: float, end: float, **fields: Any
) -> pb.Appointment:
    """Return an appointment from one minute of the morning to another."""
    message = pb.Appointment(organization_id=organization, start=at(start), end=at(end))
    if id is not None:
        message.id = id
    if "attributes" in fields:
        message.attributes.update(fields.pop("attributes"))
    message.MergeFrom(pb.Appointment(**fields))
    return message


def upsert_request(organization: str, id: str, minute: int) -> rpc.UpsertAppointmentRequest:
    """Return an upsert of one minute of the morning."""
    return rpc.UpsertAppointmentRequest(
        appointment=appointment(organization, id, minute, minute + 1)
    )


def batch_request(appointments: Iterable[pb.Appointment]) -> rpc.BatchUpsertAppointmentsRequest:
    item = rpc.BatchUpsertAppointmentsRequest.Item
    return rpc.BatchUpsertAppointmentsRequest(
        requests=[item(appointment=wanted) for wanted in appointments]
    )


def code_of(call: Any) -> grpc.StatusCode:
    """Wait for a call that must fail, and return its error."""
    error = call.exception(timeout=30)
    assert isinstance(error, grpc.RpcError), error
    code: grpc.StatusCode = call.code()
    return code


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A gRPC error with its details unpacked."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: dict[str, str] = field(default_factory=dict)
    conflicts: list[pb.TimeRangeConflict.Conflict] = field(default_factory=list)
    more_conflicts: bool = False
    alternatives: list[pb.TimeRange] = field(default_factory=list)
    # The items of an atomic batch that were refused.
    items: list[pb.BatchRefusal.Item] = field(default_factory=list)
    more_items: bool = False
    retry_after: float | None = None
    organization_revision: int | None = None


def refusal(error: grpc.RpcError) -> Refusal:
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    metadata = dict(error.trailing_metadata() or ())
    details = metadata.get("grpc-status-details-bin")
    assert isinstance(details, bytes), f"no details: {error.code()} {error.details()}"
    revision = metadata.get("organization-revision")
    return refusal_of(Status.FromString(details), error.code(), int(revision) if revision else None)


def refusal_of(
    status: Status, code: grpc.StatusCode, organization_revision: int | None = None
) -> Refusal:
    assert status.code == code.value[0]
    info = error_details_pb2.ErrorInfo()
    fields = error_details_pb2.BadRequest()
    taken = pb.TimeRangeConflict()
    batch = pb.BatchRefusal()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        assert any(detail.Unpack(known) for known in (info, fields, taken, batch, retry))
    assert info.domain == "appointments.v1"
    return Refusal(
        code=code,
        reason=info.reason,
        message=status.message,
        fields={violation.field: violation.description for violation in fields.field_violations},
        conflicts=list(taken.conflicts),
        more_conflicts=taken.more_conflicts,
        alternatives=list(taken.alternatives),
        items=list(batch.items),
        more_items=batch.more_items,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() or None,
        organization_revision=organization_revision,
    )


def soon(seconds: float) -> Timestamp:
    """Return a time by the clock of this machine, which the database of the tests shares."""
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return timestamp


def refused(call: Callable[..., object], *args: Any, **options: Any) -> Refusal:
    """Make a call that must be refused, and return its error."""
    try:
        response = call(*args, **options)
    except grpc.RpcError as error:
        return refusal(error)
    raise AssertionError(f"not refused: {response}")


class Organization:
    """The calls of one organization. Each raises grpc.RpcError if it is refused."""

    def __init__(self, stub: AppointmentServiceStub, id: str) -> None:
        self.stub = stub
        self.id = id

    def upsert(
        self, id: str | None, start: float, end: float, **fields: Any
    ) -> rpc.UpsertAppointmentResponse:
        """Upsert. Fields are those of the appointment or of the request."""
        of_request = ("etag", "create_only", "idempotency_key", "validate_only", "suggest")
        options = {name: fields.pop(name) for name in of_request if name in fields}
        request = rpc.UpsertAppointmentRequest(
            appointment=appointment(self.id, id, start, end, **fields), **options
        )
        return self.stub.UpsertAppointment(request, timeout=TIMEOUT)

    def refused(self, id: str | None, start: float, end: float, **fields: Any) -> Refusal:
        """Send an upsert that must be refused, and return its error."""
        return refused(self.upsert, id, start, end, **fields)

    def update(
        self, id: str, fields: Mapping[str, Any], mask: Sequence[str] | None = None, **options: Any
    ) -> rpc.UpdateAppointmentResponse:
        """Update the fields of the mask, by default those that are given."""
        request = rpc.UpdateAppointmentRequest(
            appointment=pb.Appointment(organization_id=self.id, id=id, **fields), **options
        )
        if mask is not None:
            request.update_mask.paths.extend(mask)
        return self.stub.UpdateAppointment(request, timeout=TIMEOUT)

    def confirm(self, id: str, **options: Any) -> rpc.ConfirmAppointmentResponse:
        request = rpc.ConfirmAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.stub.ConfirmAppointment(request, timeout=TIMEOUT)

    def cancel(self, id: str, **options: Any) -> rpc.CancelAppointmentResponse:
        request = rpc.CancelAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.stub.CancelAppointment(request, timeout=TIMEOUT)

    def redact(self, id: str, **options: Any) -> rpc.RedactAppointmentResponse:
        request = rpc.RedactAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.stub.RedactAppointment(request, timeout=TIMEOUT)

    def get(self, id: str, **options: Any) -> pb.Appointment:
        request = rpc.GetAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.stub.GetAppointment(request, timeout=TIMEOUT).appointment

    def list_page(self, **filters: Any) -> rpc.ListAppointmentsResponse:
        request = rpc.ListAppointmentsRequest(organization_id=self.id, **filters)
        return self.stub.ListAppointments(request, timeout=TIMEOUT)

    def listed(self, **filters: Any) -> dict[str, pb.Appointment]:
        """Return all appointments, including cancelled ones unless filtered."""
        filters = {"include_cancelled": True, **filters}
        found: dict[str, pb.Appointment] = {}
        token = ""
        while True:
            page = self.list_page(page_token=token, **filters)
            found |= {item.id: item for item in page.appointments}
            token = page.next_page_token
            if not token:
                return found

    def history(self, id: str, **options: Any) -> rpc.ListAppointmentHistoryResponse:
        request = rpc.ListAppointmentHistoryRequest(organization_id=self.id, id=id, **options)
        return self.stub.ListAppointmentHistory(request, timeout=TIMEOUT)

    def changes(
        self, after_revision: int = 0, *, page_size: int = 1000, **filters: Any
    ) -> list[pb.HistoryEntry]:
        """Return all changes of the organization, or those that the filters select."""
        entries: list[pb.HistoryEntry] = []
        token = ""
        while True:
            request = rpc.ListChangesRequest(
                organization_id=self.id,
                after_revision=after_revision,
                page_size=page_size,
                page_token=token,
                **filters,
            )
            page = self.stub.ListChanges(request, timeout=TIMEOUT)
            entries.extend(page.entries)
            token = page.next_page_token
            if not token:
                return entries

    def check_history(self) -> None:
        """Assert that history has no gaps and replays to the state, and that nothing overlaps."""
        entries = self.changes()
        assert [entry.revision for entry in entries] == list(range(1, len(entries) + 1))
        replayed: dict[str, pb.Appointment] = {}
        for entry in entries:
            before = replayed.get(entry.appointment.id)
            assert entry.appointment.version == (before.version if before else 0) + 1
            assert entry.appointment.revision == entry.revision
            replayed[entry.appointment.id] = entry.appointment
        stored = self.listed()
        for id, item in replayed.items():
            # The history does not say yet that a hold has expired.
            if item.state == pb.Appointment.HELD and stored[id].state == pb.Appointment.EXPIRED:
                item.state, item.etag = stored[id].state, stored[id].etag
        assert stored == replayed
        for earlier, later in pairwise(entries):
            assert earlier.recorded_at.ToNanoseconds() <= later.recorded_at.ToNanoseconds()
        check_no_overlap(list(replayed.values()))


def check_no_overlap(appointments: list[pb.Appointment]) -> None:
    occupied = sorted(
        (resource, item.start.ToNanoseconds(), item.end.ToNanoseconds(), item.id)
        for item in appointments
        if item.state in (pb.Appointment.ACTIVE, pb.Appointment.HELD)
        for resource in (item.resource_id, *item.additional_resource_ids)
    )
    for earlier, later in pairwise(occupied):
        assert earlier[0] != later[0] or earlier[2] <= later[1], (earlier, later)
