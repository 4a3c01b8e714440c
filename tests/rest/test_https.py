"""The gateway with HTTPS, and with TLS to the service."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from cryptography import x509

from local.programs import Program
from tests.certificates import (
    Authority,
    Files,
    Volume,
    begin_handshake,
    channel_to,
    client_hello,
    client_tls,
    served_serial,
)
from tests.conftest import StartProgram
from tests.observing import metric, until
from tests.rest.event_source import EventSource
from tests.rest_client import Client


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def directory(path: Path) -> Files:
    path.mkdir()
    return Files(path)


def https(files: Files) -> dict[str, str]:
    return {"GATEWAY_TLS_CERTIFICATE": str(files.certificate), "GATEWAY_TLS_KEY": str(files.key)}


def to_service(files: Files) -> dict[str, str]:
    return {
        "SERVICE_TLS_CA": str(files.ca),
        "SERVICE_TLS_CERTIFICATE": str(files.certificate),
        "SERVICE_TLS_KEY": str(files.key),
    }


def of_service(files: Files) -> dict[str, str]:
    return {
        "GRPC_TLS_CERTIFICATE": str(files.certificate),
        "GRPC_TLS_KEY": str(files.key),
        "GRPC_TLS_CLIENT_CA": str(files.ca),
    }


class Writes:
    """Writes over one connection, one after another, and counts those that failed."""

    def __init__(self, client: Client) -> None:
        self.written = 0
        self.failures: list[object] = []
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.is_set():
            answer = self._client.upsert("a", title=str(self.written))
            if answer.status < 400:
                self.written += 1
            else:
                self.failures.append(answer.json)


def test_requests_use_https_and_plain_http_is_not_served(
    start_gateway: StartProgram, tmp_path: Path, authority: Authority, organization: str
) -> None:
    gateway = start_gateway(**https(Files(tmp_path).write(authority.issue())))
    client = Client(gateway, organization, client_tls(authority))
    assert client.upsert("a").status == 201
    assert [each["id"] for each in client.stored()] == ["a"]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not plain.recv(100).startswith(b"HTTP")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        Client(gateway, organization, client_tls(Authority("another"))).stored()
    assert client.stored()


def test_a_handshake_that_does_not_end_is_ended(
    start_gateway: StartProgram, tmp_path: Path, authority: Authority
) -> None:
    """Before it has ended, the time for headers and idle connections does not count yet."""
    gateway = start_gateway(
        **https(Files(tmp_path).write(authority.issue())), GATEWAY_HEADER_TIMEOUT="1"
    )
    hello = client_hello()
    began = time.monotonic()
    for connection in [begin_handshake(gateway.port, sent) for sent in (b"", hello[:10], hello)]:
        with connection:
            while connection.recv(4096):
                pass
        assert 0.9 < time.monotonic() - began < 10


def test_a_renewed_certificate_is_used_while_writes_and_a_stream_run(
    start_gateway: StartProgram, tmp_path: Path, authority: Authority, organization: str
) -> None:
    volume = Volume(tmp_path / "volume")
    volume.publish(authority.issue(), authority)
    gateway = start_gateway(**https(volume.files))
    tls = client_tls(authority)
    writes = Writes(Client(gateway, organization, tls))
    with EventSource(gateway, organization, tls=tls) as source, writes.running():
        until(lambda: source.revisions != [])
        for _ in range(2):
            renewed = authority.issue()
            volume.publish(renewed, authority)
            until(lambda: served_serial(gateway.port) == renewed.serial, within=5)  # noqa: B023
            assert Client(gateway, organization, tls).stored()
        revision = source.revisions[-1]
        until(lambda: source.revisions[-1] > revision)
    assert source.streams == 1
    assert writes.failures == []


def test_a_certificate_and_a_key_that_do_not_match_are_not_used(
    start_gateway: StartProgram, tmp_path: Path, authority: Authority, organization: str
) -> None:
    files = Files(tmp_path).write(authority.issue())
    gateway = start_gateway(**https(files))
    before, renewed = served_serial(gateway.port), authority.issue()
    files.key.write_bytes(renewed.key)
    warning = gateway.wait_for_event(lambda event: event["event"] == "certificates not renewed")
    assert warning["error"].startswith(f"GATEWAY_TLS_KEY: {files.key} is not the key of")
    assert served_serial(gateway.port) == before
    assert Client(gateway, organization, client_tls(authority)).stored() == []
    files.certificate.write_bytes(renewed.certificate)
    until(lambda: served_serial(gateway.port) == renewed.serial, within=5)
    name = 'gateway_certificate_expiry_timestamp_seconds{setting="GATEWAY_TLS_CERTIFICATE"}'
    assert metric(gateway, name) > 0


def test_a_stream_that_nobody_reads_ends_with_https_too(
    start_gateway: StartProgram, tmp_path: Path, authority: Authority, organization: str
) -> None:
    gateway = start_gateway(**https(Files(tmp_path).write(authority.issue())), WATCH_PATIENCE="0.5")
    tls = client_tls(authority)
    writer = Client(gateway, organization, tls)
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
        tls.wrap_socket(connection, server_hostname="127.0.0.1") as reader,
    ):
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(
            f"GET /api/changes?organizationId={organization} HTTP/1.1\r\nHost: a\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        ended = 'gateway_event_streams_ended_total{reason="slow_reader"}'
        number = 0
        while metric(gateway, ended) == 0:
            assert number < 500
            writer.upsert("a", title="t" * 200, attributes={"text": f"{number:05}" * 2000})
            number += 1


@pytest.fixture
def encrypted_service(start_service: StartProgram, tmp_path: Path, authority: Authority) -> Program:
    """A service that only a gateway with a certificate of `authority` can call."""
    files = directory(tmp_path / "service").write(authority.issue(), authority)
    return start_service(**of_service(files))


def test_a_gateway_with_a_certificate_calls_the_service(
    encrypted_service: Program,
    start_gateway: StartProgram,
    tmp_path: Path,
    authority: Authority,
    organization: str,
) -> None:
    files = directory(tmp_path / "gateway").write(authority.issue(names=()), authority)
    gateway = start_gateway(SERVICE_ADDRESS=encrypted_service.address, **to_service(files))
    client = Client(gateway, organization)
    assert client.send("GET", "/readyz").status == 200
    assert client.upsert("a").status == 201
    with EventSource(gateway, organization) as source:
        until(lambda: source.revisions == [1])


@pytest.mark.parametrize("wrong", ["no TLS", "no certificate", "its authority", "the service's"])
def test_a_gateway_that_the_service_or_that_itself_does_not_trust_is_not_ready(
    encrypted_service: Program,
    start_gateway: StartProgram,
    tmp_path: Path,
    authority: Authority,
    organization: str,
    wrong: str,
) -> None:
    another = Authority("another")
    files = directory(tmp_path / "gateway").write(
        (another if wrong == "its authority" else authority).issue(),
        another if wrong == "the service's" else authority,
    )
    settings = to_service(files)
    if wrong == "no TLS":
        settings = {}
    elif wrong == "no certificate":
        settings = {"SERVICE_TLS_CA": str(files.ca)}
    gateway = start_gateway(SERVICE_ADDRESS=encrypted_service.address, **settings)
    client = Client(gateway, organization)
    assert client.send("GET", "/readyz").status == 503
    assert client.upsert("a").status == 503
    assert client.send("GET", "/healthz").status == 200


def test_the_name_in_the_services_certificate_may_be_another_than_its_host(
    start_service: StartProgram,
    start_gateway: StartProgram,
    tmp_path: Path,
    authority: Authority,
    organization: str,
) -> None:
    name = x509.DNSName("appointments.internal")
    files = Files(tmp_path).write(authority.issue(names=[name]), authority)
    service = start_service(**of_service(files))
    settings = {"SERVICE_ADDRESS": service.address, **to_service(files)}
    assert Client(start_gateway(**settings), organization).upsert("a").status == 503
    gateway = start_gateway(**settings, SERVICE_TLS_SERVER_NAME="appointments.internal")
    assert Client(gateway, organization).upsert("a").status == 201


def test_another_authority_takes_over_while_writes_and_a_stream_run(
    start_service: StartProgram, start_gateway: StartProgram, tmp_path: Path, organization: str
) -> None:
    """In three steps: trust both, renew the certificates, trust only the new one."""
    old, new, strange = Authority("old"), Authority("new"), Authority("strange")
    both = Authority("both")
    both.certificate = old.certificate + new.certificate
    service_files = directory(tmp_path / "service").write(old.issue(), old)
    gateway_files = directory(tmp_path / "gateway").write(old.issue(), old)
    service = start_service(**of_service(service_files), GRPC_CONNECTION_AGE="1")
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **to_service(gateway_files))

    def renewals() -> list[int]:
        return [
            sum('"certificates renewed"' in line for line in program.log_lines())
            for program in (service, gateway)
        ]

    def accepts(client: Authority) -> bool:
        with channel_to(service.address, both, client.issue()) as channel:
            return can_connect(channel)

    writes = Writes(Client(gateway, organization))
    with EventSource(gateway, organization) as source, writes.running():
        until(lambda: source.revisions != [])
        service_files.write(authority=both)
        gateway_files.write(authority=both)
        until(lambda: renewals() == [1, 1])
        assert accepts(new)
        service_files.write(new.issue())
        gateway_files.write(new.issue())
        until(lambda: renewals() == [2, 2])
        service_files.write(authority=new)
        gateway_files.write(authority=new)
        until(lambda: renewals() == [3, 3])
        assert accepts(new)
        assert not accepts(old)
        assert not accepts(strange)
        # Long enough for every connection to be older than GRPC_CONNECTION_AGE.
        revision = source.revisions[-1]
        threading.Event().wait(3)
        until(lambda: source.revisions[-1] > revision)
    assert source.streams == 1
    assert writes.failures == []
    until(lambda: source.revisions == list(range(1, len(source.revisions) + 1)))


def can_connect(channel: grpc.Channel) -> bool:
    try:
        grpc.channel_ready_future(channel).result(timeout=3)
    except grpc.FutureTimeoutError:
        return False
    return True


def test_calls_and_streams_leave_a_connection_that_was_replaced(
    encrypted_service: Program,
    start_gateway: StartProgram,
    tmp_path: Path,
    authority: Authority,
    organization: str,
) -> None:
    files = directory(tmp_path / "gateway").write(authority.issue(), authority)
    gateway = start_gateway(SERVICE_ADDRESS=encrypted_service.address, **to_service(files))

    def ports() -> set[int]:
        """Return the ports of the gateway's connections to the service."""
        return {
            each.laddr.port
            for each in psutil.Process(gateway.process.pid).net_connections("tcp")
            if each.raddr and each.raddr.port == encrypted_service.port
        }

    writes = Writes(Client(gateway, organization))
    with EventSource(gateway, organization) as source, writes.running():
        until(lambda: source.revisions != [])
        before = ports()
        assert len(before) == 1
        files.write(authority.issue())
        # Well before GRPC_CONNECTION_AGE, after which every connection is replaced.
        until(lambda: len(ports()) == 1 and not ports() & before, within=8)
        revision = source.revisions[-1]
        until(lambda: source.revisions[-1] > revision)
    assert source.streams == 1
    assert writes.failures == []
