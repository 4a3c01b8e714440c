"""Two versions of a service are served side by side."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from appointments.relay.v1 import relay_pb2
from appointments.relay.v1.relay_pb2_grpc import (
    RelayServiceStub,
    add_RelayServiceServicer_to_server,
)
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import (
    GetAppointmentRequest,
    GetAppointmentResponse,
    WatchAppointmentsRequest,
    WatchAppointmentsResponse,
)
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from grpc import aio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.transcoding.routes import routes_of
from service.metrics import Metrics
from service.rpc.direct import direct_handlers
from service.rpc.handler import Call, CallHandler
from service.rpc.relay import RelayServicer
from service.rpc.request_reader import Arrivals, RequestReader
from service.server import APPOINTMENTS

V1, V2 = "appointments.v1.AppointmentService", "appointments.v2.AppointmentService"


def second_version() -> ServiceDescriptor:
    """Create a service with the methods, messages and routes of the first one."""
    file = FileDescriptorProto(
        name="appointments/v2/appointment_service.proto",
        package="appointments.v2",
        syntax="proto3",
        dependency=[APPOINTMENTS.file.name, "google/longrunning/operations.proto"],
    )
    APPOINTMENTS.CopyToProto(file.service.add())
    Default().AddSerializedFile(file.SerializeToString())
    copy: ServiceDescriptor = Default().FindServiceByName(V2)
    return copy


@dataclass(frozen=True, slots=True)
class Servicer:
    version: str

    async def GetAppointment(self, _: GetAppointmentRequest, __: Call) -> GetAppointmentResponse:
        return GetAppointmentResponse(appointment=Appointment(id=self.version))

    async def WatchAppointments(
        self, _: WatchAppointmentsRequest, __: Call
    ) -> AsyncIterator[WatchAppointmentsResponse]:
        yield WatchAppointmentsResponse(revision=int(self.version))


@dataclass(frozen=True, slots=True)
class Served:
    channel: aio.Channel
    metrics: CollectorRegistry

    async def get(self, service: str) -> str:
        get: Any = self.channel.unary_unary(f"/{service}/GetAppointment")
        return GetAppointmentResponse.FromString(await get(b"", timeout=5)).appointment.id

    async def get_by_relay(self, service: str) -> str:
        stream = RelayServiceStub(self.channel).Relay()
        call = relay_pb2.Call(number=1, method=f"/{service}/GetAppointment")
        await stream.write(relay_pb2.RelayRequest(calls=[call]))
        response = await stream.read()
        stream.cancel()
        assert isinstance(response, relay_pb2.RelayResponse)
        [answer] = response.answers
        return GetAppointmentResponse.FromString(answer.response).appointment.id

    async def watch(self, service: str) -> str:
        watch: Any = self.channel.unary_stream(f"/{service}/WatchAppointments")
        [message] = [message async for message in watch(b"", timeout=5)]
        return str(WatchAppointmentsResponse.FromString(message).revision)

    def count(self, method: str) -> float | None:
        labels = {"method": method, "code": "OK"}
        return self.metrics.get_sample_value("appointments_request_seconds_count", labels)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    metrics = Metrics()
    services: dict[ServiceDescriptor, object] = {
        APPOINTMENTS: Servicer("1"),
        second_version(): Servicer("2"),
    }
    calls = CallHandler(services, metrics, timeout=5, send_timeout=5, max_bytes=10_000)
    reader = RequestReader(Arrivals(), max_calls=10)
    server = aio.server()
    server.add_generic_rpc_handlers(
        tuple(direct_handlers(each, calls.handle, calls.stream, reader) for each in services)
    )
    add_RelayServiceServicer_to_server(
        RelayServicer(calls.handle, metrics, stream_age=60, max_calls=1000, send_timeout=5), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(channel, metrics.registry)
    finally:
        await server.stop(None)


async def test_each_version_is_called_by_either_way(served: Served) -> None:
    for call in (served.get, served.get_by_relay, served.watch):
        assert [await call(V1), await call(V2)] == ["1", "2"]


async def test_logs_and_metrics_tell_the_versions_apart(served: Served) -> None:
    with capture_logs() as logs:
        for version in (V1, V2, V2):
            await served.get(version)
    later = f"{V2}.GetAppointment"
    assert [each["method"] for each in logs] == ["GetAppointment", later, later]
    assert (served.count("GetAppointment"), served.count(later)) == (1, 2)


def test_the_gateway_has_routes_of_both() -> None:
    routes = [
        route
        for route in routes_of(APPOINTMENTS, second_version())
        if route.rpc.name == "ListChanges"
    ]
    assert [(route.rpc_path, route.name, route.stream_name) for route in routes] == [
        (f"/{V1}/ListChanges", "ListChanges", "WatchAppointments"),
        (f"/{V2}/ListChanges", f"{V2}.ListChanges", f"{V2}.WatchAppointments"),
    ]
