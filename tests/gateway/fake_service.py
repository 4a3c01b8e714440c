"""A small implementation of the service, whose responses a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from appointments.relay.v1.relay_pb2_grpc import add_RelayServiceServicer_to_server
from appointments.v1 import appointment_service_pb2 as pb
from appointments.v1.appointment_pb2 import Appointment, Outcome
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status
from grpc import Compression, StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from service.metrics import Metrics
from service.rpc.handler import Call, Receive
from service.rpc.relay import RelayServicer

Behave = Callable[[], Awaitable[None]]
_METHODS = pb.DESCRIPTOR.services_by_name["AppointmentService"].methods_by_name
_NOT_THERE = Status(code=StatusCode.UNIMPLEMENTED.value[0], message="Method not found!")


class Refusal(Exception):
    """Ends a call with this status."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


async def _answer_at_once() -> None:
    return


@dataclass(slots=True)
class FakeService:
    """Records requests, runs `behave`, then responds with `outcome`."""

    server: aio.Server
    port: int = 0
    behave: Behave = _answer_at_once
    outcome: Outcome.ValueType = Outcome.CREATED
    request: Any = None
    call: Any = None
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

    async def handle(self, method: str, receive: Receive, call: Call) -> bytes | Status:
        name = method.removeprefix("/appointments.v1.AppointmentService/")
        if name not in _METHODS or name == "ListChanges":
            return _NOT_THERE
        self.request = GetMessageClass(_METHODS[name].input_type).FromString(await receive())
        self.call = call
        self.calls += 1
        call.organization_revision = 7
        try:
            await self.behave()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        except Refusal as refusal:
            return refusal.status
        except RuntimeError as error:
            return Status(code=StatusCode.UNKNOWN.value[0], message=repr(error))
        response = GetMessageClass(_METHODS[name].output_type)()
        self._fill(response)
        return response.SerializeToString()

    def _fill(self, response: Message) -> None:
        match response:
            case pb.UpsertAppointmentResponse() | pb.UpdateAppointmentResponse():
                stored = response.appointment
                stored.CopyFrom(self.request.appointment)
                if not stored.HasField("id"):
                    stored.id = "made"
                if not stored.HasField("organization_id"):
                    stored.organization_id = "default"
                stored.MergeFrom(
                    Appointment(state=Appointment.ACTIVE, version=1, revision=7, etag="e7")
                )
                stored.attributes.SetInParent()
                stored.created_at.FromSeconds(7)
                stored.updated_at.FromSeconds(7)
                response.outcome = self.outcome
            case pb.GetAppointmentResponse():
                response.appointment.MergeFrom(Appointment(id=self.request.id, etag="e7"))
            case pb.ListAppointmentsResponse():
                response.revision = 7
            case pb.ConfirmAppointmentResponse():
                response.appointment.MergeFrom(Appointment(id=self.request.id, etag="e9"))
                response.outcome = Outcome.CONFIRMED
            case pb.CancelAppointmentResponse():
                stored = Appointment(id=self.request.id, etag="e8", state=Appointment.CANCELLED)
                response.appointment.MergeFrom(stored)
                response.outcome = Outcome.CANCELLED


@asynccontextmanager
async def fake_service(
    port: int = 0,
    compression: Compression = Compression.NoCompression,
    relay: type[RelayServicer] = RelayServicer,
) -> AsyncIterator[FakeService]:
    """Serve on a port, by default any free one, with `relay` for the streams of gateways."""
    server = aio.server(compression=compression)
    service = FakeService(server=server, health=health_aio.HealthServicer())
    add_RelayServiceServicer_to_server(
        relay(service.handle, Metrics(), stream_age=5, max_calls=1000, send_timeout=5), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)
    service.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await service.set_serving(True)
    await server.start()
    try:
        yield service
    finally:
        await server.stop(0)
