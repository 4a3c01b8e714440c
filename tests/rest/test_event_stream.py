"""The changes of an organization as server-sent events, through the gateway."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from local.programs import Program
from tests.api import Organization
from tests.conftest import StartProgram
from tests.load import Load
from tests.observing import metric, until
from tests.reads.test_watch import write_large
from tests.rest_client import Client, Events


@pytest.fixture
def unread(own_gateway: Program, organization: str) -> Iterator[socket.socket]:
    """A connection that requests the stream and never reads it."""
    with socket.create_connection(("127.0.0.1", own_gateway.port)) as connection:
        connection.sendall(
            f"GET /api/changes?organizationId={organization} HTTP/1.1\r\nHost: x\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        yield connection


def stopped_sending(service: Program) -> bool:
    """Return whether a stream has sent something, and then nothing for a while."""
    sent = metric(service, "appointments_watched_entries_total")
    time.sleep(0.5)
    return sent > 0 and sent == metric(service, "appointments_watched_entries_total")


def test_events_are_the_entries_of_the_page(
    gateway: Program, client: Client, organization: str
) -> None:
    client.upsert("a", attributes={"lines": "one\ntwo\r\u2028"})
    client.upsert("a", title="other")
    with Events(gateway, organization) as stream:
        headers = stream.response.headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Request-Id"]
        events = stream.events(2)
        started = time.monotonic()
        client.call("DELETE", "/appointments/a")
        events += stream.events(1)
        assert time.monotonic() - started < 1
    assert [event["id"] for event in events] == ["1", "2", "3"]
    assert [event["event"] for event in events] == ["created", "updated", "cancelled"]
    page = client.call("GET", "/changes")
    assert [json.loads(event["data"]) for event in events] == page.json["entries"]
    assert page.headers["Vary"] == "Accept, Accept-Encoding"


def test_a_confirmed_hold_and_an_expired_one_are_events(
    gateway: Program, client: Client, organization: str
) -> None:
    with Events(gateway, organization) as stream:
        end = datetime.now(UTC) + timedelta(hours=1)
        client.upsert("a", holdUntil=end.isoformat())
        assert client.call("POST", "/appointments/a:confirm").status == 200
        end = datetime.now(UTC) + timedelta(seconds=2.5)
        client.upsert("b", resourceId="2", holdUntil=end.isoformat())
        until(lambda: client.upsert("c", resourceId="2").status == 201)
        events = stream.events(5)
    assert [event["event"] for event in events] == [
        "created",
        "confirmed",
        "created",
        "expired",
        "created",
    ]
    page = client.call("GET", "/changes").json["entries"]
    assert [json.loads(event["data"]) for event in events] == page
    assert [entry["change"] for entry in page][1::2] == ["CONFIRMED", "EXPIRED"]
    assert page[3]["appointment"]["state"] == "EXPIRED"


def test_it_begins_at_once_even_without_events(
    gateway: Program, client: Client, organization: str
) -> None:
    """With the revision that it begins after, which is no event."""
    with Events(gateway, organization) as stream:
        lines = [stream.response.readline() for _ in range(4)]
        assert lines[1:] == [b"\n", b"id: 0\n", b"\n"]
        assert int(lines[0].removeprefix(b"retry: ")) in range(1000, 3001)
        client.upsert("a")
        assert stream.events(1)[0]["id"] == "1"
        assert stream.reader.comments == []


def test_an_actor_in_utf_8_may_listen(gateway: Program, organization: str) -> None:
    named = "Zoë".encode().decode("latin-1")  # as http.client writes bytes
    with Events(gateway, organization, X_Actor=named) as stream:
        assert stream.response.status == 200


def test_it_goes_on_after_the_last_event_id(
    gateway: Program, client: Client, organization: str
) -> None:
    for id in "abc":
        client.upsert(id, resourceId=id)
    with Events(gateway, organization, 1) as stream:
        assert stream.events(1)[0]["id"] == "2"
    with Events(gateway, organization, 0, Last_Event_ID="2") as stream:
        assert stream.events(1)[0]["id"] == "3"


def test_a_heartbeat_is_sent(start_gateway: StartProgram, organization: str) -> None:
    gateway = start_gateway(GATEWAY_HEARTBEAT_INTERVAL="0.05")
    with Events(gateway, organization) as stream:
        assert stream.response.readline().startswith(b"retry: ")
        assert [stream.response.readline() for _ in range(3)] == [b"\n", b"id: 0\n", b"\n"]
        assert [stream.response.readline() for _ in range(6)] == [b":\n", b"\n"] * 3
        Client(gateway, organization).upsert("a")
        assert stream.events(1)[0]["id"] == "1"


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ({"afterRevision": 9}, {}, "afterRevision"),
        ({"afterRevision": -1}, {}, "afterRevision"),
        ({"afterRevision": "x"}, {}, "afterRevision"),
        ({"pageSize": 1}, {}, "pageSize"),
        ({"pageToken": "x"}, {}, "pageToken"),
        ({"organizationId": ""}, {}, "organizationId"),
        ({}, {"Last_Event_ID": "x"}, "Last-Event-ID"),
        ({}, {"Last_Event_ID": ""}, "Last-Event-ID"),
        ({}, {"Last_Event_ID": "-1"}, "Last-Event-ID"),
        ({"afterRevision": "x"}, {"Last_Event_ID": "0"}, "afterRevision"),
        ({}, {"X_Actor": "x" * 257}, "X-Actor"),
    ],
)
def test_what_cannot_be_begun_is_a_problem(
    client: Client, query: dict[str, object], headers: dict[str, str], field: str
) -> None:
    answer = client.call("GET", "/changes", Accept="text/event-stream", **query, **headers)
    assert (answer.status, answer.json["code"]) == (400, "INVALID_FIELD")
    assert answer.fields == {field}


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/json"),
        ("text/*", "application/json"),
        ("text/event-stream-like", "application/json"),
        ("text/event-stream;q=0", "application/json"),
        ("text/event-stream;q=x", "application/json"),
        ("text/event-stream;q=0.5, application/json", "application/json"),
        ("application/json;q=0.5,Text/Event-Stream ; charset=utf-8;q=0.9", "text/event-stream"),
        ("text/event-stream, */*", "text/event-stream"),
    ],
)
def test_the_media_type_is_what_is_accepted(
    gateway: Program, organization: str, accept: str, media_type: str
) -> None:
    """HEAD returns the headers of the stream and ends."""
    client = Client(gateway, organization)
    connection = client._connection
    connection.request("HEAD", "/api/changes", headers={"Accept": accept})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, media_type)
    assert answer.read() == b""
    assert client.upsert().status == 201, "the connection is still of use"


def test_other_methods_are_refused_as_ever(client: Client) -> None:
    answer = client.call("POST", "/changes", Accept="text/event-stream")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_streams_have_a_limit_of_their_own_and_give_their_place_back(
    service: Program, start_gateway: StartProgram, organization: str
) -> None:
    gateway = start_gateway(GATEWAY_MAX_STREAMS="1", GATEWAY_MAX_IN_FLIGHT="1")
    client = Client(gateway, organization)
    with Events(gateway, organization, None, X_Request_Id=f"first-{organization}") as stream:
        with Events(gateway, organization, None, X_Request_Id=f"second-{organization}") as second:
            assert second.event() is None
            assert second.reader.comments == ["too many streams are open"]
            assert second.reader.retry in range(5000, 15001)
        assert client.upsert("a").status == 201
        assert stream.events(1)[0]["id"] == "1"
        assert metric(gateway, "gateway_event_streams") == 1
    until(lambda: metric(gateway, "gateway_event_streams") == 0)

    def of_first(event: dict[str, object]) -> bool:
        return event.get("request_id") == f"first-{organization}"

    def of_second(event: dict[str, object]) -> bool:
        return event.get("request_id") == f"second-{organization}"

    assert gateway.wait_for_event(of_second)["code"] == "OVERLOADED"
    assert metric(gateway, 'gateway_event_streams_ended_total{reason="overloaded"}') == 1
    assert metric(gateway, 'gateway_event_streams_ended_total{reason="caller_gone"}') == 1
    line = gateway.wait_for_event(of_first)
    assert (line["method"], line["status"], line["events"]) == ("WatchAppointments", 200, 1)
    assert service.wait_for_event(of_first)["code"] == "CANCELLED"
    with Events(gateway, organization) as stream:
        assert stream.events(1)[0]["id"] == "1"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stream_outlives_the_service(
    start_service: StartProgram,
    own_service: Program,
    own_gateway: Program,
    service: Program,
    organization: str,
    number: signal.Signals,
) -> None:
    """Writers continue through another gateway, so that the stream can miss changes."""
    with (
        Load(service.address, organization, writers=2) as load,
        Events(own_gateway, organization) as stream,
    ):
        stream.events(50)
        port = own_service.port
        own_service.process.send_signal(number)
        own_service.process.wait(timeout=20)
        before = len(load.accepted)
        until(lambda: len(load.accepted) > before + 50)
        start_service(GRPC_PORT=str(port))
        seen = 50
        while seen < before + 100:
            [event] = stream.events(1)
            seen += 1
            assert event["id"] == str(seen)
        load.stop()


def test_sigterm_ends_streams_cleanly_and_at_once(
    own_service: Program, own_gateway: Program, organization: str
) -> None:
    Client(own_gateway, organization).upsert("a")
    with Events(own_gateway, organization) as stream:
        stream.events(1)
        started = time.monotonic()
        own_gateway.process.send_signal(signal.SIGTERM)
        assert stream.event() is None  # http.client raises if the last chunk is missing
        assert stream.reader.comments == ["the gateway stops"]
        assert own_gateway.process.wait(timeout=20) == 0
        assert own_service.stop() == 0
        assert time.monotonic() - started < 5


def test_a_slow_reader_holds_up_neither_others_nor_the_end(
    own_service: Program,
    own_gateway: Program,
    org: Organization,
    organization: str,
    unread: socket.socket,
) -> None:
    count = 2000
    write_large(org, count)
    with Events(own_gateway, organization) as stream:
        until(lambda: metric(own_gateway, "gateway_event_streams") == 2)
        assert len(stream.events(count)) == count
        until(lambda: stopped_sending(own_service))
        # The buffers between service and socket hold only a part of the changes.
        assert metric(own_service, "appointments_watched_entries_total") < 1.7 * count
        org.upsert("live", 5000, 5001)
        assert stream.events(1)[0]["id"] == str(count + 1)
    started = time.monotonic()
    own_service.process.send_signal(signal.SIGTERM)
    own_gateway.process.send_signal(signal.SIGTERM)
    assert own_gateway.process.wait(timeout=20) == 0
    assert own_service.process.wait(timeout=20) == 0
    assert time.monotonic() - started < 6
    assert unread.recv(1) == b"H"
