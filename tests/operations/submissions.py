"""Asynchronous writes for tests: short calls, and operations unpacked."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.longrunning import operations_pb2 as lro
from google.longrunning.operations_pb2_grpc import OperationsStub

from tests.api import TIMEOUT, Organization, appointment


class Submissions:
    """The operations of one organization. Every call raises grpc.RpcError if it is refused."""

    def __init__(self, channel: grpc.Channel, id: str) -> None:
        self.appointments = AppointmentServiceStub(channel)
        self.operations: Any = OperationsStub(channel)
        self.id = id

    @property
    def org(self) -> Organization:
        """The same organization, with synchronous calls."""
        return Organization(self.appointments, self.id)

    def submit(self, *, actor: str = "", **write: Any) -> lro.Operation:
        request = rpc.SubmitAppointmentRequest(**write)
        metadata = (("x-actor", actor),) if actor else ()
        return self.appointments.SubmitAppointment(request, timeout=TIMEOUT, metadata=metadata)

    def upsert(self, id: str | None, start: float, end: float, **fields: Any) -> lro.Operation:
        """Submit an upsert. `fields` are those of the appointment and of the request."""
        actor = fields.pop("actor", "")
        of_request = ("etag", "create_only", "idempotency_key")
        options = {name: fields.pop(name) for name in of_request if name in fields}
        wanted = appointment(self.id, id, start, end, **fields)
        request = rpc.UpsertAppointmentRequest(appointment=wanted, **options)
        return self.submit(upsert=request, actor=actor)

    def update(self, id: str, fields: Mapping[str, Any], **options: Any) -> lro.Operation:
        """Submit an update of these fields of the appointment."""
        wanted = pb.Appointment(organization_id=self.id, id=id, **fields)
        request = rpc.UpdateAppointmentRequest(appointment=wanted, **options)
        return self.submit(update=request)

    def cancel(self, id: str, **options: Any) -> lro.Operation:
        request = rpc.CancelAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.submit(cancel=request)

    def confirm(self, id: str, **options: Any) -> lro.Operation:
        request = rpc.ConfirmAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.submit(confirm=request)

    def redact(self, id: str, **options: Any) -> lro.Operation:
        request = rpc.RedactAppointmentRequest(organization_id=self.id, id=id, **options)
        return self.submit(redact=request)

    def get(self, name: str) -> lro.Operation:
        found: lro.Operation = self.operations.GetOperation(
            lro.GetOperationRequest(name=name), timeout=TIMEOUT
        )
        return found

    def wait(self, operation: lro.Operation, *, timeout: float | None = None) -> lro.Operation:
        """Wait until the operation is done, or return its state after a timeout (seconds)."""
        request = lro.WaitOperationRequest(name=operation.name)
        if timeout is not None:
            request.timeout.FromNanoseconds(int(timeout * 1e9))
        found: lro.Operation = self.operations.WaitOperation(request, timeout=TIMEOUT)
        assert found.done or timeout is not None, "not done in time"
        return found

    def page(self, **fields: Any) -> lro.ListOperationsResponse:
        fields.setdefault("name", f"organizations/{quote(self.id, safe='')}")
        found: lro.ListOperationsResponse = self.operations.ListOperations(
            lro.ListOperationsRequest(**fields), timeout=TIMEOUT
        )
        return found

    def listed(self, **filters: Any) -> list[str]:
        """Return the names of all operations, over all pages."""
        names: list[str] = []
        token = ""
        while True:
            page = self.page(page_token=token, **filters)
            names += [operation.name for operation in page.operations]
            token = page.next_page_token
            if not token:
                return names


def metadata_of(operation: lro.Operation) -> rpc.OperationMetadata:
    metadata = rpc.OperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


def response_of(operation: lro.Operation) -> pb.Appointment:
    assert operation.WhichOneof("result") == "response", operation
    stored = pb.Appointment()
    assert operation.response.Unpack(stored)
    return stored
