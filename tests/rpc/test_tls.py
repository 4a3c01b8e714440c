"""gRPC with TLS: who is refused, and certificates that are renewed while calls run."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local.programs import Program
from tests.api import upsert_request
from tests.certificates import (
    DAY,
    LOOPBACK,
    Authority,
    Files,
    Issued,
    Volume,
    begin_handshake,
    channel_to,
    client_hello,
    served_serial,
)
from tests.conftest import StartProgram
from tests.observing import until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> Files:
    return Files(tmp_path).write(authority.issue(), authority)


def tls(files: Files) -> dict[str, str]:
    return {"GRPC_TLS_CERTIFICATE": str(files.certificate), "GRPC_TLS_KEY": str(files.key)}


def mtls(files: Files) -> dict[str, str]:
    return {**tls(files), "GRPC_TLS_CLIENT_CA": str(files.ca)}


def outcome(
    address: str, authority: Authority, client: Issued | None = None
) -> grpc.StatusCode | None:
    """Call over a new connection. Returns the error's code, None after a response."""
    with channel_to(address, authority, client) as channel:
        return code(channel)


def code(channel: grpc.Channel) -> grpc.StatusCode | None:
    stub = AppointmentServiceStub(channel)
    request = rpc.ListAppointmentsRequest(organization_id="none")
    try:
        stub.ListAppointments(request, timeout=20)
    except grpc.RpcError as error:
        refused: grpc.StatusCode = error.code()
        return refused
    return None


def health(channel: grpc.Channel) -> int:
    request = health_pb2.HealthCheckRequest()
    return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def test_callers_use_tls_and_know_the_service(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    service = start_service(**tls(files))
    assert outcome(service.address, authority) is None
    assert outcome(service.address, Authority("another")) is UNAVAILABLE
    with grpc.insecure_channel(service.address) as channel:
        assert code(channel) is UNAVAILABLE
    assert outcome(service.address, authority) is None


def test_a_caller_needs_a_certificate_of_the_right_authority(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    service = start_service(**mtls(files))
    assert outcome(service.address, authority) is UNAVAILABLE
    assert outcome(service.address, authority, Authority("another").issue()) is UNAVAILABLE
    assert outcome(service.address, authority, authority.issue(names=())) is None


def test_a_port_of_its_own_needs_certificates_and_the_other_does_not(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    service = start_service(**mtls(files), GRPC_MTLS_PORT="0")
    listening = service.wait_for_event(lambda event: event["event"] == "listening")
    strict = f"127.0.0.1:{listening['mtls_port']}"
    assert outcome(service.address, authority) is None
    assert outcome(strict, authority) is UNAVAILABLE
    assert outcome(strict, authority, authority.issue()) is None


def test_probes_without_a_certificate_have_a_port_with_nothing_else(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    service = start_service(**mtls(files), GRPC_HEALTH_PORT="0")
    listening = service.wait_for_event(lambda event: event["event"] == "listening")
    with grpc.insecure_channel(f"127.0.0.1:{listening['health_port']}") as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
        assert code(channel) is grpc.StatusCode.UNIMPLEMENTED
    with channel_to(service.address, authority, authority.issue()) as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.slow
def test_a_handshake_that_does_not_end_is_ended(start_service: StartProgram, files: Files) -> None:
    service = start_service(**tls(files), GRPC_HEALTH_PORT="0")
    listening = service.wait_for_event(lambda event: event["event"] == "listening")
    hello = client_hello()
    began = time.monotonic()
    connections = [
        begin_handshake(port, sent)
        for port in (listening["port"], listening["health_port"])
        for sent in (b"", hello[:10], hello)
    ]
    for connection in connections:
        with connection:
            while connection.recv(4096):
                pass
        assert 9 < time.monotonic() - began < 20


def test_grpcurl_calls_with_a_certificate(
    start_service: StartProgram, files: Files, authority: Authority, tmp_path: Path
) -> None:
    service = start_service(**mtls(files))
    shown = tmp_path / "client"
    shown.mkdir()
    client = Files(shown).write(authority.issue(), authority)
    program = Path(sys.executable).with_name("grpcurl")
    trust = ["-cacert", str(client.ca), "-cert", str(client.certificate), "-key", str(client.key)]
    done = subprocess.run(
        [program, *trust, service.address, "list"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "appointments.v1.AppointmentService" in done.stdout.split()


class Traffic:
    """Writes over one channel and a new one each time, and a stream of their changes."""

    def __init__(
        self, service: Program, organization: str, authority: Authority, client: Issued | None
    ) -> None:
        self.written = 0
        self.failures: list[grpc.RpcError] = []
        self.revisions: list[int] = []
        self._service, self._organization = service, organization
        self._authority, self._client = authority, client
        self._kept = channel_to(service.address, authority, client)
        self._ended = threading.Event()
        self._watching = AppointmentServiceStub(self._kept).WatchAppointments(
            rpc.WatchAppointmentsRequest(organization_id=organization, after_revision=0)
        )
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._write, self._watch)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._threads[0].join(30)
            until(lambda: self.revisions == list(range(1, self.written + 1)))
            self._watching.cancel()
            self._threads[1].join(30)
            self._kept.close()

    def _write(self) -> None:
        while not self._ended.is_set():
            with channel_to(self._service.address, self._authority, self._client) as fresh:
                for channel in (fresh, self._kept):
                    request = upsert_request(self._organization, str(self.written), self.written)
                    try:
                        AppointmentServiceStub(channel).UpsertAppointment(request, timeout=20)
                        self.written += 1
                    except grpc.RpcError as error:
                        self.failures.append(error)

    def _watch(self) -> None:
        try:
            for response in self._watching:
                self.revisions += [entry.revision for entry in response.entries]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.CANCELLED:
                self.failures.append(error)


def test_a_renewed_certificate_is_used_while_calls_and_a_stream_run(
    start_service: StartProgram, tmp_path: Path, authority: Authority, organization: str
) -> None:
    volume = Volume(tmp_path / "volume")
    first, second, third = [authority.issue() for _ in range(3)]
    volume.publish(first, authority)
    # The connection of the test's channel is renewed too, by its age.
    service = start_service(**mtls(volume.files), GRPC_CONNECTION_AGE="1")
    traffic = Traffic(service, organization, authority, authority.issue())
    with traffic.running():
        for issued, publish in ((second, volume.publish), (third, volume.publish)):
            written = traffic.written
            publish(issued, authority)
            until(lambda: served_serial(service.port) == issued.serial, within=5)  # noqa: B023
            until(lambda: traffic.written > written + 5)  # noqa: B023
    assert traffic.failures == []


def test_a_certificate_and_a_key_that_do_not_match_are_not_used(
    start_service: StartProgram, files: Files, authority: Authority, organization: str
) -> None:
    service = start_service(**tls(files))
    before = served_serial(service.port)
    renewed = authority.issue()
    traffic = Traffic(service, organization, authority, None)
    with traffic.running():
        files.certificate.write_bytes(renewed.certificate)
        warning = service.wait_for_event(lambda event: event["event"] == "certificates not renewed")
        assert warning["level"] == "warning"
        assert warning["error"].startswith(f"GRPC_TLS_KEY: {files.key} is not the key of")
        assert served_serial(service.port) == before
        files.key.write_bytes(renewed.key)
        until(lambda: served_serial(service.port) == renewed.serial, within=5)
    assert traffic.failures == []


def test_a_renewed_authority_decides_about_new_connections(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    service = start_service(**mtls(files))
    old, other = authority.issue(), Authority("another")
    new = other.issue()
    assert outcome(service.address, authority, old) is None
    files.write(authority=other)
    until(lambda: outcome(service.address, authority, new) is None)
    assert outcome(service.address, authority, old) is UNAVAILABLE


def test_an_expired_certificate_is_logged_and_its_callers_decide(
    start_service: StartProgram, files: Files, authority: Authority
) -> None:
    expired = authority.issue(names=LOOPBACK, ends=-DAY)
    service = start_service(**tls(files.write(expired)))
    warning = service.wait_for_event(lambda event: event["event"] == "certificate expired")
    assert warning["level"] == "warning"
    assert warning["GRPC_TLS_CERTIFICATE"] == str(files.certificate)
    assert served_serial(service.port) == expired.serial
    assert outcome(service.address, authority) is UNAVAILABLE
    files.write(authority.issue())
    until(lambda: outcome(service.address, authority) is None)
