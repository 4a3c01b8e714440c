"""All programs accept the same syntax of hosts, including IPv6."""

import asyncio
import gc
import socket
import urllib.request
from collections.abc import Callable
from functools import partial

import aio_pika
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.settings import Settings
from local.postgres import migrate
from local.programs import Program, StartError
from local.stack import ANY_PORT, base_environment, check_ports
from runtime.listening import CannotListen, listen_on, listening_socket
from service.amqp import Broker, Outgoing, is_amqp_url
from service.errors import BrokerUnavailable
from service.operations.rabbitmq.queue import declare_queues
from service.reads.replicas import by_host
from tests.conftest import OwnPostgres, StartProgram
from tests.observing import until

V4, V6 = "127.0.0.1", "[::1]"
NAMED = {address[4][0] for address in socket.getaddrinfo("localhost", 0)}
# By host setting: the addresses that reach the program, and those that do not.
SPELLINGS = {
    "::": ((V4, V6), ()),
    "[::]": ((V4, V6), ()),
    "::1": ((V6,), (V4,)),
    "[::1]": ((V6,), (V4,)),
    "0.0.0.0": ((V4,), ()),  # noqa: S104
    "127.0.0.1": ((V4,), (V6,)),
    "localhost": (
        tuple(reached for reached, address in ((V4, V4), (V6, "::1")) if address in NAMED),
        (),
    ),
}
spelled = pytest.mark.parametrize("host", SPELLINGS)


def listen(address: str, port: int) -> tuple[socket.socket, int]:
    listening = listening_socket(address, port)
    return listening, listening.getsockname()[1]


def http_status(host: str, *, port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
        return int(answer.status)


def check_health(target: str) -> int:
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10, wait_for_ready=True)
        return int(answer.status)


def check_reached(host: str, port: int, check: Callable[[str], object]) -> None:
    """A program is reached at all addresses of its host, and at no others."""
    ways, closed = SPELLINGS[host]
    assert ways
    for way in ways:
        check(way)
    for way in closed:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((way.strip("[]"), port), timeout=5)


@spelled
def test_the_service_and_its_metrics(start_service: StartProgram, host: str) -> None:
    service = start_service(GRPC_HOST=host)
    check_reached(host, service.port, lambda way: check_health(f"{way}:{service.port}"))
    check_reached(
        host,
        service.metrics_port,
        lambda way: http_status(way, port=service.metrics_port, path="/metrics"),
    )


@spelled
def test_the_gateway_and_its_metrics(
    service: Program, start_gateway: StartProgram, host: str
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=service.address, GATEWAY_HOST=host)
    for port, path in ((gateway.port, "/api/changes"), (gateway.metrics_port, "/metrics")):
        check_reached(host, port, partial(http_status, port=port, path=path))


@spelled
def test_the_workers_metrics(start_worker: StartProgram, host: str) -> None:
    port = start_worker(GRPC_HOST=host).metrics_port
    check_reached(host, port, lambda way: http_status(way, port=port, path="/metrics"))


def test_channelz_stays_on_loopback(start_service: StartProgram) -> None:
    service = start_service(GRPC_HOST="::", CHANNELZ_PORT="0")
    event = service.wait_for_event(lambda event: event.get("event") == "listening")
    with grpc.insecure_channel(f"localhost:{event['channelz_port']}") as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
    addresses = {str(address[4][0]) for address in socket.getaddrinfo(socket.gethostname(), 0)}
    for address in addresses - {"127.0.0.1", "::1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, event["channelz_port"]), timeout=5)


@pytest.mark.parametrize("address", ["[::1]:{}", "ipv6:[::1]:{}", "dns:///[::1]:{}"])
def test_the_gateway_reaches_the_service_by_ipv6(
    start_service: StartProgram, start_gateway: StartProgram, address: str
) -> None:
    service = start_service(GRPC_HOST="::1")
    gateway = start_gateway(SERVICE_ADDRESS=address.format(service.port))
    until(lambda: http_status(V4, port=gateway.port, path="/readyz") == 200)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("::1:50051", "brackets"),
        ("localhost", "a port"),
        ("[::1]", "a port"),
        ("localhost:", "a port"),
        ("localhost:http", "a port"),
        ("localhost:70000", "a port"),
        (":50051", "a host"),
        ("[]:50051", "a host"),
        ("", "a port"),
    ],
)
def test_an_address_of_no_service_is_refused_at_start(address: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(service_address=address)


def test_a_database_by_ipv6(
    own_postgres: OwnPostgres, start_service: StartProgram, start_gateway: StartProgram
) -> None:
    with listening_socket("::1", 0) as free:
        port = free.getsockname()[1]
    own_postgres(migrated=False, listen_addresses="::1", port=str(port))
    url = f"postgresql://postgres@[::1]:{port}/appointments"
    migrate(url)
    service = start_service(DATABASE_URL=url, DATABASE_READ_URL=url)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    until(lambda: http_status(V4, port=gateway.port, path="/readyz") == 200)
    service.wait_for_event(
        lambda event: (
            event.get("event") == "replica available" and event["replica"] == f"[::1]:{port}"
        )
    )


async def test_rabbitmq_by_ipv6() -> None:
    greeted: asyncio.Future[bytes] = asyncio.Future()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.set_result(await reader.readexactly(4))
        writer.close()

    async with await asyncio.start_server(greet, "::1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"amqp://user:password@[::1]:{port}/"
        broker = Broker(url, name="test", timeout=5, declare=declare_queues)
        message = Outgoing(routing_key="a", message=aio_pika.Message(b""))
        with pytest.raises(BrokerUnavailable):
            await broker.publish("", message)
        assert await greeted == b"AMQP"
        await broker.close()
    # aio-pika closes a connection that failed when it is collected, which needs this loop.
    gc.collect()
    await asyncio.sleep(0.1)


def test_hosts_of_ipv6_in_urls() -> None:
    assert list(by_host("postgresql://u@[::1]:5432,[fd00::2]:5433/db")) == [
        "[::1]:5432",
        "[fd00::2]:5433",
    ]
    assert is_amqp_url("amqp://user:password@[::1]:5672/")
    assert not is_amqp_url("amqp://user:password@::1:5672/")


class TestWhyNot:
    """The error message contains the actual cause and the settings to change."""

    FAILURES = (
        ("192.0.2.1", "cannot assign requested address"),
        ("2001:db8::1", "cannot assign requested address"),
        ("no-such-host.invalid", "the host is not known"),
        ("[fd00::1%none]", "the host is not known"),
        ("a" * 70, "not a host's name"),
        ("a..b", "not a host's name"),
    )

    @pytest.mark.parametrize(("host", "reason"), FAILURES[:3])
    def test_of_every_program(
        self,
        start_service: StartProgram,
        start_worker: StartProgram,
        start_gateway: StartProgram,
        host: str,
        reason: str,
    ) -> None:
        starts: tuple[tuple[StartProgram, str, str, dict[str, str]], ...] = (
            (start_service, "GRPC_HOST", "GRPC_PORT", {"METRICS_PORT": ""}),
            (start_service, "GRPC_HOST", "METRICS_PORT", {}),
            (start_worker, "GRPC_HOST", "WORKER_METRICS_PORT", {}),
            (start_gateway, "GATEWAY_HOST", "GATEWAY_PORT", {"GATEWAY_METRICS_PORT": ""}),
            (start_gateway, "GATEWAY_HOST", "GATEWAY_METRICS_PORT", {}),
        )
        for start, host_name, port_name, settings in starts:
            with pytest.raises(StartError) as caught:
                start(**{host_name: host, **settings})
            assert "cannot listen on" in str(caught.value)
            assert reason in str(caught.value)
            assert f"({host_name}, {port_name})" in str(caught.value)
            assert "exit code 1" in str(caught.value)

    @pytest.mark.parametrize(("host", "reason"), FAILURES)
    def test_of_any_host(self, host: str, reason: str) -> None:
        with pytest.raises(CannotListen, match=f"\\(A, B\\): {reason}"):
            listen_on(host, 0, listen, settings="A, B")

    def test_of_a_port_that_is_taken_on_the_other_family(
        self, start_service: StartProgram, start_gateway: StartProgram
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            for start, name in ((start_service, "GRPC"), (start_gateway, "GATEWAY")):
                with pytest.raises(StartError, match="address already in use"):
                    start(**{f"{name}_HOST": "::", f"{name}_PORT": port})

    def test_of_what_is_run_together(self) -> None:
        """Before anything is started."""
        environment = {**base_environment(), **ANY_PORT}
        for host in ("::", "[::1]", "localhost"):
            check_ports({**environment, "GRPC_HOST": host, "GATEWAY_HOST": host})
        with pytest.raises(StartError, match=r"\(GATEWAY_HOST, GATEWAY_PORT\): cannot assign"):
            check_ports({**environment, "GATEWAY_HOST": "192.0.2.1"})


def test_a_name_is_served_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may have an address of a family that this machine does not support."""
    found = socket.getaddrinfo

    def resolved(host: str, *arguments: int, **named: int) -> object:
        if host != "both":
            return found(host, *arguments, **named)
        return [*found("192.0.2.1", 0), *found("127.0.0.1", 0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)

    (only,), port = listen_on("both", 0, listen, settings="A")
    with only:
        assert only.getsockname() == ("127.0.0.1", port)
