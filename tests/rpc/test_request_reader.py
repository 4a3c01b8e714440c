"""Calls before their request is there: how many, how long, how large."""

import gzip
import itertools
import time
import zlib

import grpc
import psutil
import pytest
from appointments.relay.v1 import relay_pb2
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from local.programs import Program
from tests.api import Organization, refusal
from tests.conftest import StartProgram
from tests.rpc.http2 import Connection, framed

APPOINTMENTS = "/appointments.v1.AppointmentService"
WATCH = f"{APPOINTMENTS}/WatchAppointments"
RELAY = "/appointments.relay.v1.RelayService/Relay"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
# One method of every service and of every shape that is served.
SINGLE = (
    f"{APPOINTMENTS}/UpsertAppointment",
    WATCH,
    "/appointments.v1.WebhookService/ListWebhooks",
    "/google.longrunning.Operations/GetOperation",
    f"{HEALTH}/Check",
    f"{HEALTH}/Watch",
)
STREAMS = (RELAY, REFLECTION.format("v1"), REFLECTION.format("v1alpha"))
INVALID, EXHAUSTED, UNIMPLEMENTED, DEADLINE_EXCEEDED = "3", "8", "12", "4"


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """256 MiB in 256 KiB."""
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    zeros = bytes(1024 * 1024)
    packed = b"".join([*(packer.compress(zeros) for _ in range(256)), packer.flush()])
    assert len(packed) < 300_000
    return packed


def cpu_seconds(program: Program) -> float:
    times = psutil.Process(program.process.pid).cpu_times()
    return float(times.user + times.system)


class TestCompression:
    @pytest.mark.parametrize("path", [*SINGLE, *STREAMS])
    def test_what_inflates_beyond_the_limit_is_refused_at_once(
        self, service: Program, bomb: bytes, path: str
    ) -> None:
        with Connection(service.address) as connection:
            before = cpu_seconds(service)
            call = connection.open(path, grpc_encoding="gzip")
            connection.data(call, framed(bomb, compressed=True), end=True)
            status = connection.status(call)
            spent = cpu_seconds(service) - before
        assert status["grpc-status"] == EXHAUSTED
        assert "the decompressed message has more than" in status["grpc-message"]
        assert spent < 0.1, "inflated whole, it takes a second"

    def test_a_bomb_in_the_middle_of_a_stream_ends_it_alone(
        self, service: Program, bomb: bytes, organization: str
    ) -> None:
        asked = rpc.ListChangesRequest(organization_id=organization).SerializeToString()
        method = "/appointments.v1.AppointmentService/ListChanges"
        message = relay_pb2.RelayRequest(
            calls=[relay_pb2.Call(number=1, method=method, request=asked)]
        )
        with Connection(service.address) as connection:
            call = connection.open(RELAY, grpc_encoding="gzip")
            connection.data(call, framed(message.SerializeToString()))
            connection.data(call, framed(bomb, compressed=True))
            assert connection.status(call)["grpc-status"] == EXHAUSTED
            other = connection.open(f"{HEALTH}/Check")
            connection.data(other, framed(b""), end=True)
            assert connection.status(other)["grpc-status"] == "0"

    def test_an_honest_caller_may_compress(self, service: Program, organization: str) -> None:
        with grpc.insecure_channel(service.address, compression=grpc.Compression.Gzip) as channel:
            org = Organization(AppointmentServiceStub(channel), organization)
            title = "long " * 200
            assert org.upsert("a", 0, 1, title=title).appointment.title == title
            watch = AppointmentServiceStub(channel).WatchAppointments(
                rpc.WatchAppointmentsRequest(organization_id=organization), timeout=30
            )
            assert next(iter(watch)).entries[0].appointment.title == title
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(service="")).status == 1
            listed = channel.stream_stream(
                REFLECTION.format("v1"),
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([reflection_pb2.ServerReflectionRequest(list_services="x" * 2000)]))
            assert next(listed).list_services_response.service

    @pytest.mark.parametrize("path", [*SINGLE, *STREAMS])
    def test_another_compression_is_refused_by_name(self, service: Program, path: str) -> None:
        with Connection(service.address) as connection:
            call = connection.open(path, grpc_encoding="deflate")
            connection.data(call, framed(zlib.compress(b"x" * 1000), compressed=True), end=True)
            status = connection.status(call)
        assert status["grpc-status"] == UNIMPLEMENTED
        assert "deflate" in status["grpc-message"]

    @pytest.mark.parametrize(
        ("message", "why"),
        [
            (gzip.compress(b"")[:-4], "not one complete gzip stream"),
            (gzip.compress(b"") + b"more", "not one complete gzip stream"),
            (gzip.compress(b"")[:10] + b"\xff" * 20, "not valid gzip"),
        ],
        ids=["cut", "longer", "broken"],
    )
    def test_what_is_no_gzip_is_malformed(self, service: Program, message: bytes, why: str) -> None:
        with Connection(service.address) as connection:
            call = connection.open(SINGLE[0], grpc_encoding="gzip")
            connection.data(call, framed(message, compressed=True), end=True)
            status = connection.status(call)
        assert status["grpc-status"] == INVALID
        assert why in status["grpc-message"]

    def test_what_is_too_large_as_it_is_has_the_same_status(
        self, service: Program, organization: str
    ) -> None:
        with grpc.insecure_channel(service.address) as channel:
            org = Organization(AppointmentServiceStub(channel), organization)
            with pytest.raises(grpc.RpcError) as raised:
                org.upsert("a", 0, 1, title="x" * 4_000_000)
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


class TestSilence:
    @pytest.fixture
    def impatient(self, start_service: StartProgram) -> Program:
        return start_service(REQUEST_TIMEOUT="0.5")

    @pytest.mark.parametrize("sent", [b"", framed(b"x" * 100)[:50]], ids=["nothing", "a part"])
    def test_a_request_has_its_time_to_come(self, impatient: Program, sent: bytes) -> None:
        with Connection(impatient.address) as connection:
            began = time.monotonic()
            calls = [connection.open(path) for path in SINGLE]
            if sent:
                for call in calls:
                    connection.data(call, sent)
            statuses = connection.statuses(calls, within=20)
            took = time.monotonic() - began
        assert {status["grpc-status"] for status in statuses.values()} == {DEADLINE_EXCEEDED}
        assert {status["grpc-message"] for status in statuses.values()} == {
            "no request came in time; nothing was written"
        }
        assert 0.5 <= took < 5

    def test_a_request_that_trickles_has_no_more_time(self, impatient: Program) -> None:
        with Connection(impatient.address) as connection:
            call = connection.open(SINGLE[0])
            began = time.monotonic()
            for byte in framed(b"x" * 200):
                connection.data(call, bytes([byte]))
                connection.frames(within=0.05)
                if connection.ended(call):
                    break
            assert connection.status(call, within=0)["grpc-status"] == DEADLINE_EXCEEDED
        assert time.monotonic() - began < 8

    def test_it_is_logged_and_counted_as_a_call(self, impatient: Program) -> None:
        with Connection(impatient.address) as connection:
            connection.status(connection.open(SINGLE[0], x_request_id="silent"))
        event = impatient.wait_for_event(lambda event: event.get("request_id") == "silent")
        assert (event["method"], event["code"]) == ("UpsertAppointment", "DEADLINE_EXCEEDED")

    def test_a_call_that_ends_without_a_request_is_malformed(self, service: Program) -> None:
        with Connection(service.address) as connection:
            calls = [connection.open(path) for path in SINGLE]
            for call in calls:
                connection.data(call, b"", end=True)
            statuses = connection.statuses(calls)
        assert {status["grpc-status"] for status in statuses.values()} == {INVALID}

    def test_it_does_not_hold_the_end_up(self, start_service: StartProgram) -> None:
        service = start_service()
        with Connection(service.address) as connection:
            for path in (*SINGLE, *STREAMS):
                connection.open(path)
            answered = connection.open(f"{HEALTH}/Check")
            connection.data(answered, framed(b""), end=True)
            connection.status(answered)
            began = time.monotonic()
            assert service.stop() == 0
        assert time.monotonic() - began < 10, "the grace is 15 s"


class TestLimit:
    def test_one_call_too_many_is_refused_from_its_opening(
        self, start_service: StartProgram, organization: str
    ) -> None:
        service = start_service(MAX_CALLS="20")
        with (
            grpc.insecure_channel(service.address) as channel,
            Connection(service.address) as connection,
        ):
            paths = itertools.cycle(path for path in SINGLE if not path.startswith(HEALTH))
            silent = [connection.open(next(paths)) for _ in range(20)]
            refused = connection.status(connection.open(WATCH))
            assert refused["grpc-status"] == EXHAUSTED
            org = Organization(AppointmentServiceStub(channel), organization)
            with pytest.raises(grpc.RpcError) as raised:
                org.upsert("a", 0, 1)
            failure = refusal(raised.value)
            assert (failure.code, failure.reason) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "OVERLOADED",
            )
            assert failure.retry_after == 1
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
            # Places of calls that end are free again, however they end.
            for call in silent:
                connection.data(call, b"", end=True)
            connection.statuses(silent)
            assert org.upsert("a", 0, 1).appointment.version == 1

    @pytest.mark.parametrize("path", [*STREAMS, f"{HEALTH}/Watch"])
    def test_idle_streams_have_a_limit_of_their_own(
        self, start_service: StartProgram, path: str
    ) -> None:
        service = start_service()
        with Connection(service.address) as connection:
            opened = [connection.open(path) for _ in range(1000)]
            refused = connection.status(connection.open(path))
            assert refused["grpc-status"] == EXHAUSTED
            other = connection.open(SINGLE[0])
            connection.data(other, framed(b""), end=True)
            assert connection.status(other)["grpc-status"] == INVALID
            connection.data(opened[0], b"", end=True)
            connection.status(opened[0])
            again = connection.open(path)
            connection.data(again, b"", end=True)
            assert connection.status(again)["grpc-status"] != EXHAUSTED
