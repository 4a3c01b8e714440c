"""Whom the certificate of a caller names, on plain calls and on relay streams."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from appointments.relay.v1 import relay_pb2
from appointments.relay.v1.relay_pb2_grpc import (
    RelayServiceStub,
    add_RelayServiceServicer_to_server,
)
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment
from cryptography import x509
from grpc import aio
from prometheus_client import CollectorRegistry, Gauge

from runtime.files import SettingFile
from runtime.tls import CertificateFiles, CertificateWatch, PairFiles
from service.metrics import Metrics
from service.rpc.context import RELAYED
from service.rpc.direct import direct_handlers
from service.rpc.handler import Call, CallHandler
from service.rpc.listening import bind
from service.rpc.peer import peer_identity
from service.rpc.relay import RelayServicer
from service.rpc.request_reader import Arrivals, RequestReader
from service.server import APPOINTMENTS
from tests.certificates import Authority, Files, Issued

PATH = "/appointments.v1.AppointmentService/"
NOBODY = "nobody"


def uri(value: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(value)


def dns(value: str) -> x509.GeneralName:
    return x509.DNSName(value)


class Servicer:
    """Answers with the identity of the caller."""

    async def GetAppointment(self, _: object, call: Call) -> rpc.GetAppointmentResponse:
        return rpc.GetAppointmentResponse(
            appointment=Appointment(id=call.context.identity or NOBODY)
        )

    async def WatchAppointments(
        self, _: object, call: Call
    ) -> AsyncIterator[rpc.WatchAppointmentsResponse]:
        entry = rpc.WatchAppointmentsResponse()
        entry.entries.add().appointment.id = call.context.identity or NOBODY
        yield entry


class Served:
    """A service that asks its callers for certificates, on one of its ports."""

    def __init__(self, authority: Authority, port: int, plain: int) -> None:
        self.authority = authority
        self._addresses = {True: f"127.0.0.1:{port}", False: f"127.0.0.1:{plain}"}

    async def identity(self, issued: Issued) -> str:
        async with self._channel(issued) as channel:
            direct = await self._get(channel)
            assert direct == await self._watch(channel)
            assert await self._relayed(channel) == NOBODY
            assert await self._get(channel, (RELAYED, "1")) == NOBODY
        return direct

    async def identity_without_tls(self) -> str:
        async with aio.insecure_channel(self._addresses[False]) as channel:
            return await self._get(channel)

    def _channel(self, issued: Issued) -> aio.Channel:
        return aio.secure_channel(
            self._addresses[True],
            grpc.ssl_channel_credentials(
                self.authority.certificate, issued.key, issued.certificate
            ),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )

    async def _get(self, channel: aio.Channel, *metadata: tuple[str, str]) -> str:
        get: Any = channel.unary_unary(f"{PATH}GetAppointment")
        answer = await get(b"", timeout=10, metadata=metadata)
        return rpc.GetAppointmentResponse.FromString(answer).appointment.id

    async def _watch(self, channel: aio.Channel) -> str:
        watch: Any = channel.unary_stream(f"{PATH}WatchAppointments")
        [message] = [message async for message in watch(b"", timeout=10)]
        return rpc.WatchAppointmentsResponse.FromString(message).entries[0].appointment.id

    async def _relayed(self, channel: aio.Channel) -> str:
        stream = RelayServiceStub(channel).Relay()
        call = relay_pb2.Call(number=1, method=f"{PATH}GetAppointment")
        await stream.write(relay_pb2.RelayRequest(calls=[call]))
        response = await stream.read()
        stream.cancel()
        assert isinstance(response, relay_pb2.RelayResponse)
        return rpc.GetAppointmentResponse.FromString(response.answers[0].response).appointment.id


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    authority = Authority()
    files = Files(tmp_path).write(authority.issue(), authority)
    watch = CertificateWatch(
        CertificateFiles(
            pair=PairFiles(
                certificate=SettingFile(setting="C", path=files.certificate),
                key=SettingFile(setting="K", path=files.key),
            ),
            authorities=SettingFile(setting="A", path=files.ca),
        ),
        Gauge("expiry", "", ["setting"], registry=CollectorRegistry()),
    )
    metrics = Metrics()
    calls = CallHandler(
        {APPOINTMENTS: Servicer()}, metrics, timeout=5, send_timeout=5, max_bytes=10_000
    )
    reader = RequestReader(Arrivals(), max_calls=10)
    server = aio.server()
    server.add_generic_rpc_handlers(
        (direct_handlers(APPOINTMENTS, calls.handle, calls.stream, reader, peer_identity),)
    )
    relay = RelayServicer(calls.handle, metrics, stream_age=60, max_calls=10, send_timeout=5)
    add_RelayServiceServicer_to_server(relay, server)
    port = bind(server, "127.0.0.1", 0, settings="", certificates=watch, client_certificates=True)
    plain = bind(server, "127.0.0.1", 0, settings="")
    await server.start()
    try:
        yield Served(authority, port, plain)
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("common_name", "names", "identity"),
    [
        (
            "name",
            [dns("a.example"), uri("spiffe://example.org/booking")],
            "spiffe://example.org/booking",
        ),
        ("name", [dns("A.example"), dns("b.example")], "dns:a.example"),
        ("name", [uri("https://example.org/"), dns("a.example")], "dns:a.example"),
        ("name", [x509.RFC822Name("a@example.org")], "cn:name"),
        ("Zoë", [], "cn:Zoë"),
        # A name of one kind is never one of another.
        ("spiffe://example.org/booking", [], "cn:spiffe://example.org/booking"),
        ("dns:a.example", [], "cn:dns:a.example"),
        ("name", [dns("spiffe://example.org/booking")], "dns:spiffe://example.org/booking"),
        # Nobody.
        ("name", [uri("spiffe://example.org/a"), uri("spiffe://example.org/b")], NOBODY),
        ("name", [uri("SPIFFE://example.org"), uri("spiffe://example.org/b")], NOBODY),
        ("", [], NOBODY),
        ("", [x509.RFC822Name("a@example.org")], NOBODY),
    ],
)
async def test_the_certificate_names_direct_callers_and_nobody_on_a_relay_stream(
    served: Served, common_name: str, names: list[x509.GeneralName], identity: str
) -> None:
    assert await served.identity(served.authority.issue(common_name, names)) == identity


async def test_a_connection_without_a_certificate_names_nobody(served: Served) -> None:
    assert await served.identity_without_tls() == NOBODY
