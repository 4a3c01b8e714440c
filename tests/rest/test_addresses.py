"""Gateways and gRPC clients of a service whose addresses change."""

import json
import runpy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

import grpc
import psutil
import pytest

from local.programs import ROOT, Program
from tests.conftest import StartProgram
from tests.load import Load, RestLoad
from tests.observing import until
from tests.rest.names import NameServer
from tests.rest_client import Client, Events

Start = Callable[[str], Program]


# Enough that an address without any is out of the question: each has one of 64 lanes at random.
ORGANIZATIONS = 60


def served(service: Program) -> Counter[str]:
    """Return the number of upserts that it has handled, by organization."""
    lines = (line for line in service.log_lines() if "UpsertAppointment" in line)
    return Counter(json.loads(line)["organization"] for line in lines)


def calls(service: Program) -> int:
    """Return the number of upserts that it has handled."""
    return served(service).total()


def stored(gateway: Program, organization: str) -> set[str]:
    """Return the ids of all appointments of an organization, in a list of any length."""
    client = Client(gateway, organization)
    found, token = set[str](), ""
    while True:
        page = client.call("GET", "/appointments", pageToken=token).json
        found |= {each["id"] for each in page["appointments"]}
        token = page.get("nextPageToken", "")
        if not token:
            return found


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


@pytest.fixture
def clients(organization: str) -> Callable[[Program], list[Client]]:
    """Return clients of so many organizations at a gateway."""
    return lambda gateway: [
        Client(gateway, f"{organization}-{number}") for number in range(ORGANIZATIONS)
    ]


def write(clients: Iterable[Client]) -> None:
    for client in clients:
        assert client.upsert().status in {200, 201}


def test_an_organization_has_the_same_instance_from_every_gateway(
    start_at: Start,
    start_gateway: StartProgram,
    names: NameServer,
    clients: Callable[[Program], list[Client]],
) -> None:
    addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    services = [start_at(address) for address in addresses]
    names.addresses = addresses
    gateways = [start_gateway(SERVICE_ADDRESS=names.target(services[0].port)) for _ in range(3)]
    for gateway in gateways:
        write(clients(gateway))
    until(lambda: sum(map(calls, services)) == 3 * ORGANIZATIONS)
    for service in services:
        assert served(service)
        assert set(served(service).values()) == {3}


def test_an_address_that_comes_back_gets_its_organizations_again(
    start_at: Start, start_gateway: StartProgram, clients: Callable[[Program], list[Client]]
) -> None:
    stays, goes = start_at("127.0.0.1"), start_at("127.0.0.2")
    gateway = start_gateway(SERVICE_ADDRESS=f"ipv4:127.0.0.1:{stays.port},127.0.0.2:{stays.port}")
    callers = clients(gateway)
    write(callers)
    until(lambda: calls(stays) + calls(goes) == ORGANIZATIONS)
    its = served(goes).keys()
    assert its
    goes.kill()
    for client in callers:
        until(lambda client=client: client.upsert().status == 200)  # type: ignore[misc]
    back = start_at("127.0.0.2")

    def returned() -> bool:
        write(client for client in callers if client.organization in its)
        return served(back).keys() == its

    until(returned)


def test_an_address_that_is_added_to_a_name_gets_calls(
    start_at: Start,
    start_gateway: StartProgram,
    names: NameServer,
    clients: Callable[[Program], list[Client]],
) -> None:
    first = start_at("127.0.0.1")
    gateway = start_gateway(SERVICE_ADDRESS=names.target(first.port))
    callers = clients(gateway)
    write(callers)
    added = start_at("127.0.0.2")
    names.addresses = ("127.0.0.1", "127.0.0.2")

    def reached() -> bool:
        write(callers)
        return calls(added) > 0

    until(reached)


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


# What calls end with that reach an instance in the moment in which it stops.
AT_THE_END = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("how", ["by gateway", "directly"])
def test_instances_come_and_go_under_load(
    how: str,
    start_at: Start,
    start_gateway: StartProgram,
    names: NameServer,
    organization: str,
) -> None:
    """Draining an instance costs no call of a gateway; killing one costs those in flight.

    gRPC ends calls that reach a server in the moment in which it stops. So draining costs clients
    without a gateway the same.
    """
    drained, killed, stays = (start_at(f"127.0.0.{number}") for number in (1, 2, 3))
    names.addresses = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    target = names.target(stays.port)
    gateway = start_gateway(SERVICE_ADDRESS=target)
    loads: list[RestLoad] | list[Load]
    with ExitStack() as stack:
        if how == "by gateway":
            # One writer for each of several organizations, since each has one instance.
            loads = [
                RestLoad(gateway, f"{organization}-{number}", writers=1) for number in range(16)
            ]
        else:
            connect = runpy.run_path(str(ROOT / "examples/booking.py"))["connect"]
            loads = [Load(target, organization, writers=4, connect=connect)]
        for load in loads:
            stack.enter_context(load)

        def each_gets_calls(*services: Program) -> None:
            before = {service: calls(service) for service in services}
            until(lambda: all(calls(service) > before[service] for service in services))

        def failed() -> list[object]:
            return [failure for load in loads for _, failure in load.failed]

        each_gets_calls(drained, killed, stays)
        names.addresses = ("127.0.0.2", "127.0.0.3")
        assert drained.stop() == 0
        each_gets_calls(killed, stays)
        assert how == "directly" or failed() == []
        assert set(failed()) <= AT_THE_END
        assert len(failed()) <= 4
        killed.kill()
        names.addresses = ("127.0.0.3",)
        each_gets_calls(stays)
        added = start_at("127.0.0.4")
        names.addresses = ("127.0.0.3", "127.0.0.4")
        each_gets_calls(stays, added)
        for load in loads:
            load.stop()
    assert set(failed()) <= AT_THE_END | {503}
    # One of each writer, at most, and of those without a gateway one at each end.
    assert len(failed()) <= 16
    for load in loads:
        assert stored(gateway, load.organization) >= set(load.accepted)
