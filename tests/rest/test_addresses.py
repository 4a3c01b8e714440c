"""A gateway whose service changes its addresses."""

import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from local.programs import Program
from tests.conftest import StartProgram
from tests.load import Load, RestLoad
from tests.observing import until
from tests.rest.names import NameServer
from tests.rest_client import Client, Events

Start = Callable[[str], Program]


def calls(service: Program) -> int:
    """Return the number of upserts that it has handled."""
    return sum("UpsertAppointment" in line for line in service.log_lines())


def connections(service: Program) -> set[int]:
    """Return the ports of the clients that are connected to it."""
    found = psutil.Process(service.process.pid).net_connections("tcp")
    return {
        connection.raddr.port
        for connection in found
        if connection.raddr and connection.laddr.port == service.port
    }


@pytest.fixture
def start_at(start_service: StartProgram) -> Start:
    """Start a service at an address of this machine, all on one port."""
    port = "0"

    def start(address: str) -> Program:
        nonlocal port
        service = start_service(GRPC_HOST=address, GRPC_PORT=port, GRPC_CONNECTION_AGE="3")
        port = str(service.port)
        return service

    return start


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer("127.0.0.1") as server:
        yield server


def test_an_address_that_comes_back_gets_calls_again(
    start_at: Start, start_gateway: StartProgram, organization: str
) -> None:
    stays, goes = start_at("127.0.0.1"), start_at("127.0.0.2")
    gateway = start_gateway(SERVICE_ADDRESS=f"ipv4:127.0.0.1:{stays.port},127.0.0.2:{stays.port}")
    client = Client(gateway, organization)

    def reaches(service: Program) -> bool:
        before = calls(service)
        client.upsert()
        time.sleep(0.02)  # the log line comes a moment later, or not at all
        return calls(service) > before

    until(lambda: reaches(goes))
    until(lambda: reaches(stays))
    goes.kill()
    until(lambda: client.upsert().status in {200, 201})
    back = start_at("127.0.0.2")
    until(lambda: reaches(back), within=10)
    until(lambda: reaches(stays), within=10)


def test_an_address_that_is_added_to_a_name_gets_calls(
    start_at: Start, start_gateway: StartProgram, names: NameServer, organization: str
) -> None:
    first = start_at("127.0.0.1")
    gateway = start_gateway(SERVICE_ADDRESS=names.target(first.port))
    client = Client(gateway, organization)
    assert client.upsert().status == 201
    added = start_at("127.0.0.2")
    names.addresses = ("127.0.0.1", "127.0.0.2")

    def reached() -> bool:
        return client.upsert().status == 200 and calls(added) > 0

    until(reached, within=15)


def test_a_service_that_is_replaced_under_its_name_is_found_in_a_few_seconds(
    start_at: Start, start_gateway: StartProgram, names: NameServer, organization: str
) -> None:
    replaced = start_at("127.0.0.1")
    gateway = start_gateway(SERVICE_ADDRESS=names.target(replaced.port))
    client = Client(gateway, organization)
    with Events(gateway, organization) as stream:
        assert client.upsert().status == 201
        assert stream.events(1)[0]["id"] == "1"
        start_at("127.0.0.2")
        names.addresses = ("127.0.0.2",)
        replaced.kill()
        until(lambda: client.upsert(title="after").status == 200, within=8)
        assert stream.events(1)[0]["id"] == "2"


def test_connections_are_left_without_a_lost_call(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service(GRPC_CONNECTION_AGE="0.5")
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with (
        Load(service.address, f"{organization}-direct", writers=4) as direct,
        RestLoad(gateway, f"{organization}-rest", writers=4) as rest,
        Events(gateway, f"{organization}-rest") as stream,
    ):
        stream.events(1)
        before = connections(service)
        # Of the previous connections only that of the stream is left.
        until(lambda: len(before & connections(service)) == 1)
        direct.stop()
        rest.stop()
        ids = [int(event["id"]) for event in stream.events(len(rest.accepted) - 1)]
    assert not direct.failed
    assert not rest.failed
    assert ids == list(range(2, len(rest.accepted) + 1))
