"""A small implementation of the service, whose answers a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from appointments.v1 import appointment_service_pb2 as pb
from appointments.v1.appointment_pb2 import Appointment, Outcome
from appointments.v1.appointment_service_pb2_grpc import (
    AppointmentServiceServicer,
    add_AppointmentServiceServicer_to_server,
)
from google.protobuf.message import Message
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

Context = aio.ServicerContext[Any, Any]
Behave = Callable[[Context], Awaitable[None]]


async def _answer_at_once(_: Context) -> None:
    return


@dataclass(slots=True)
class FakeService(AppointmentServiceServicer):
    """Keeps what it was asked, and answers by its `outcome` after having done `behave`."""

    server: aio.Server
    port: int = 0
    behave: Behave = _answer_at_once
    outcome: Outcome.ValueType = Outcome.CREATED
    request: Any = None
    metadata: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    health: Any = None

    def reset(self) -> None:
        self.behave = _answer_at_once
        self.outcome = Outcome.CREATED
        self.calls = 0
        self.cancelled = asyncio.Event()

    async def stop(self) -> None:
        await self.server.stop(0)

    async def set_serving(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        await self.health.set(
            "appointments.v1.AppointmentService",
            statuses.SERVING if serving else statuses.NOT_SERVING,
        )

    async def _take(self, request: Message, context: Context) -> None:
        self.request = request
        self.metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.calls += 1
        context.set_trailing_metadata((("organization-revision", "7"),))
        try:
            await self.behave(context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def UpsertAppointment(
        self, request: pb.UpsertAppointmentRequest, context: Context
    ) -> pb.UpsertAppointmentResponse:
        await self._take(request, context)
        stored = Appointment()
        stored.CopyFrom(request.appointment)
        if not stored.HasField("id"):
            stored.id = "made"
        if not stored.HasField("organization_id"):
            stored.organization_id = "default"
        stored.etag = "e7"
        return pb.UpsertAppointmentResponse(appointment=stored, outcome=self.outcome)

    async def GetAppointment(
        self, request: pb.GetAppointmentRequest, context: Context
    ) -> pb.GetAppointmentResponse:
        await self._take(request, context)
        return pb.GetAppointmentResponse(appointment=Appointment(id=request.id, etag="e7"))

    async def ListAppointments(
        self, request: pb.ListAppointmentsRequest, context: Context
    ) -> pb.ListAppointmentsResponse:
        await self._take(request, context)
        return pb.ListAppointmentsResponse(revision=7)

    async def CancelAppointment(
        self, request: pb.CancelAppointmentRequest, context: Context
    ) -> pb.CancelAppointmentResponse:
        await self._take(request, context)
        stored = Appointment(id=request.id, etag="e8", state=Appointment.CANCELLED)
        return pb.CancelAppointmentResponse(appointment=stored, outcome=Outcome.CANCELLED)

    async def BatchUpsertAppointments(
        self, request: pb.BatchUpsertAppointmentsRequest, context: Context
    ) -> pb.BatchUpsertAppointmentsResponse:
        await self._take(request, context)
        return pb.BatchUpsertAppointmentsResponse()

    async def ListAppointmentHistory(
        self, request: pb.ListAppointmentHistoryRequest, context: Context
    ) -> pb.ListAppointmentHistoryResponse:
        await self._take(request, context)
        return pb.ListAppointmentHistoryResponse()

    async def ListChanges(
        self,
        request: pb.ListChangesRequest,  # noqa: ARG002
        context: Context,
    ) -> pb.ListChangesResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")


@asynccontextmanager
async def fake_service(port: int = 0) -> AsyncIterator[FakeService]:
    """Serve, on any free port unless told which."""
    server = aio.server()
    service = FakeService(server=server, health=health_aio.HealthServicer())
    add_AppointmentServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)
    service.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await service.set_serving(True)
    await server.start()
    try:
        yield service
    finally:
        await server.stop(0)
