"""The stream of changes for an `EventSource` when something is unavailable or full."""

import json
import signal
import socket
from collections.abc import Iterator

import psycopg
import pytest

from local.programs import Program
from tests.conftest import CreateDatabase, StartProgram
from tests.observing import metric, until
from tests.rest.event_source import EventSource
from tests.rest_client import Client, Events


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is reserved for a service of the test."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_service_that_is_away_at_first_is_waited_for(
    start_service: StartProgram,
    start_gateway: StartProgram,
    gateway: Program,
    organization: str,
    free_port: int,
) -> None:
    impatient = start_gateway(SERVICE_ADDRESS=f"127.0.0.1:{free_port}", WATCH_PATIENCE="0.5")
    patient = start_gateway(SERVICE_ADDRESS=f"127.0.0.1:{free_port}")
    Client(gateway, organization).upsert("a")
    with EventSource(impatient, organization) as coming, EventSource(patient, organization) as held:
        until(lambda: coming.streams > 1)
        assert coming.comments[-1:] == ["the service does not answer"]
        start_service(GRPC_PORT=str(free_port))
        until(lambda: coming.revisions == held.revisions == [1])
        assert held.streams == 1
    assert coming.refusal is held.refusal is None
    ended = 'gateway_event_streams_ended_total{reason="service_unavailable"}'
    assert metric(impatient, ended) >= 1


def test_it_comes_back_to_a_service_that_was_away_for_longer_than_a_stream_waits(
    start_service: StartProgram, start_gateway: StartProgram, gateway: Program, organization: str
) -> None:
    service = start_service()
    impatient = start_gateway(SERVICE_ADDRESS=service.address, WATCH_PATIENCE="0.5")
    writer = Client(gateway, organization)
    with EventSource(impatient, organization) as source:
        writer.upsert("a")
        until(lambda: source.revisions == [1])
        service.kill()
        writer.upsert("a", title="meanwhile")
        until(lambda: source.streams > 2)
        start_service(GRPC_PORT=str(service.port))
        writer.upsert("a", title="after")
        until(lambda: source.revisions == [1, 2, 3])
    assert source.refusal is None


def test_a_service_that_hangs_is_waited_for(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service()
    gateway = start_gateway(
        SERVICE_ADDRESS=service.address, GATEWAY_TIMEOUT="0.3", GATEWAY_HEARTBEAT_INTERVAL="0.1"
    )
    Client(gateway, organization).upsert("a")
    service.process.send_signal(signal.SIGSTOP)
    try:
        with EventSource(gateway, organization) as source:
            until(lambda: source.streams == 1)
            assert source.events == []
            service.process.send_signal(signal.SIGCONT)
            until(lambda: source.revisions == [1])
            assert (source.streams, source.refusal) == (1, None)
    finally:
        service.process.send_signal(signal.SIGCONT)


def test_a_service_without_room_is_waited_for(
    start_service: StartProgram, start_gateway: StartProgram, organization: str
) -> None:
    service = start_service(MAX_WATCHERS="1")
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with EventSource(gateway, organization) as second:
        with Events(gateway, organization):
            Client(gateway, organization).upsert("a")
            # There is room for one of the two.
            until(lambda: metric(service, "appointments_watchers") == 1)
            until(lambda: metric(gateway, "gateway_event_streams") == 2)
        until(lambda: second.revisions == [1])
    assert (second.streams, second.refusal) == (1, None)


def test_a_gateway_that_stops_is_come_back_to(
    start_gateway: StartProgram, service: Program, organization: str
) -> None:
    gateway = start_gateway()
    Client(gateway, organization).upsert("a")
    with EventSource(gateway, organization) as source:
        until(lambda: source.revisions == [1])
        assert gateway.stop() == 0
        again = start_gateway(GATEWAY_PORT=str(gateway.port))
        Client(again, organization).upsert("b", resourceId="b")
        until(lambda: source.revisions == [1, 2])
    assert source.refusal is None


def test_what_is_wrong_with_the_request_is_told_even_while_the_service_is_away(
    start_gateway: StartProgram, start_service: StartProgram, organization: str, free_port: int
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=f"127.0.0.1:{free_port}")
    with EventSource(gateway, organization, pageSize=1) as source:
        until(lambda: source.refusal == 400)
    assert source.streams == 0
    # Only the service detects this error: the stream ends, and the next one is refused.
    with EventSource(gateway, organization, afterRevision=1) as source:
        until(lambda: source.streams == 1)
        start_service(GRPC_PORT=str(free_port))
        until(lambda: source.refusal == 400)
    assert source.streams == 1
    assert source.comments[-1] == "the service refuses to go on"


@pytest.fixture
def own(
    create_database: CreateDatabase, start_service: StartProgram, start_gateway: StartProgram
) -> tuple[str, Program]:
    """A database and the gateway of its service."""
    url = create_database()
    return url, start_gateway(SERVICE_ADDRESS=start_service(DATABASE_URL=url).address)


def set_back(url: str, revision: int) -> None:
    """Change the database as a restore to an earlier time would."""
    with psycopg.connect(url) as database:
        database.execute("SET session_replication_role = replica")
        database.execute("DELETE FROM appointment_history WHERE revision > %s", (revision,))
        database.execute("UPDATE organizations SET revision = %s", (revision,))


def test_an_id_beyond_the_latest_is_told_and_all_that_is_there_follows(
    own: tuple[str, Program], organization: str
) -> None:
    url, gateway = own
    client = Client(gateway, organization)
    for id in "abc":
        client.upsert(id, resourceId=id)
    set_back(url, 2)
    with Events(gateway, organization, 1, Last_Event_ID="3") as stream:
        reset, *events = stream.events(3)
    assert (reset["id"], reset["event"]) == ("0", "reset")
    assert json.loads(reset["data"]) == {"revision": "2"}
    assert [(event["id"], event["event"]) for event in events] == [
        ("1", "created"),
        ("2", "created"),
    ]
    # As always if the caller named a revision.
    refused = client.call("GET", "/changes", Accept="text/event-stream", afterRevision=3)
    assert (refused.status, refused.fields) == (400, {"afterRevision"})
    assert client.call("GET", "/changes", afterRevision=3).json["revision"] == "2"


def test_an_organization_that_is_gone_is_told_too(
    own: tuple[str, Program], organization: str
) -> None:
    _, gateway = own
    with Events(gateway, organization, Last_Event_ID="7") as stream:
        [reset] = stream.events(1)
        assert json.loads(reset["data"]) == {"revision": "0"}
        Client(gateway, organization).upsert("a")
        assert stream.events(1)[0]["id"] == "1"


def test_a_stream_sees_time_go_back_while_it_is_open(
    own: tuple[str, Program], organization: str
) -> None:
    url, gateway = own
    client = Client(gateway, organization)
    for id in "abc":
        client.upsert(id, resourceId=id)
    with EventSource(gateway, organization) as source:
        until(lambda: source.revisions == [1, 2, 3])
        set_back(url, 1)
        until(lambda: source.revisions == [1, 2, 3, 0, 1])
    assert source.events[3]["event"] == "reset"
    assert source.streams == 1
