"""Changes of one resource, or of some kinds, through the gateway: as pages and as events."""

import json

import pytest

from local.programs import Program
from tests.api import soon
from tests.conftest import StartProgram
from tests.observing import until
from tests.rest.event_source import EventSource
from tests.rest_client import Client, Events


def move(client: Client) -> None:
    """Create two appointments of two resources, and move the first to the second."""
    client.upsert("a", resourceId="anna")
    client.upsert("b", resourceId="bob", start="2030-01-07 12:00", end="2030-01-07 13:00")
    client.upsert("a", resourceId="bob")


def test_pages_take_a_resource_and_kinds_of_changes(client: Client) -> None:
    move(client)
    client.call("DELETE", "/appointments/b")

    def found(**query: object) -> list[str]:
        page = client.call("GET", "/changes", **query).json
        assert (page["nextPageToken"], page["revision"]) == ("", "4")
        return [entry["revision"] for entry in page["entries"]]

    assert found(resourceId="anna") == ["1", "3"]
    assert found(resourceId="bob") == ["2", "3", "4"]
    assert found(changes="CREATED") == ["1", "2"]
    assert found(changes=["UPDATED", "CANCELLED"]) == ["3", "4"]
    assert found(resourceId="anna", changes=["UPDATED", "CANCELLED"]) == ["3"]
    assert found(resourceId="") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"changes": "MOVED"}, "changes"),
        ({"changes": "CHANGE_UNSPECIFIED"}, "changes[0]"),
        ({"changes": "created"}, "changes"),
        ({"changes": ["CREATED"] * 7}, "changes"),
        ({"resourceId": "x" * 257}, "resourceId"),
        ({"resourceId": ["anna", "bob"]}, "resourceId"),
    ],
    ids=str,
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_filters_that_break_rules_are_named(
    client: Client, query: dict[str, object], field: str, accept: str
) -> None:
    refused = client.call("GET", "/changes", Accept=accept, **query)
    assert (refused.status, refused.json["code"]) == (400, "INVALID_FIELD")
    assert refused.fields == {field}


def test_a_move_reaches_the_followers_of_both_resources(
    gateway: Program, client: Client, organization: str
) -> None:
    client.upsert("c", resourceId="carl")
    with (
        Events(gateway, organization, 1, {"resourceId": "anna"}) as of_anna,
        Events(gateway, organization, None, {"resourceId": "bob"}) as of_bob,
    ):
        move(client)
        seen = [of_anna.events(2), of_bob.events(2)]
    assert [[event["id"] for event in events] for events in seen] == [["2", "4"], ["3", "4"]]
    moved = client.call("GET", "/changes", afterRevision=3).json["entries"]
    assert [[json.loads(events[-1]["data"])] for events in seen] == [moved, moved]


def test_kinds_of_changes_are_selected(gateway: Program, client: Client, organization: str) -> None:
    later = {"start": "2030-01-07 12:00", "end": "2030-01-07 13:00"}
    with Events(gateway, organization, None, {"changes": ["CONFIRMED", "EXPIRED"]}) as stream:
        client.upsert("a", holdUntil=soon(60).ToJsonString())
        client.call("POST", "/appointments/a:confirm")
        client.upsert("b", holdUntil=soon(1.5).ToJsonString(), **later)
        until(lambda: client.call("GET", "/appointments/b").json["state"] == "EXPIRED")
        client.upsert("c", **later)
        assert [(event["id"], event["event"]) for event in stream.events(2)] == [
            ("2", "confirmed"),
            ("4", "expired"),
        ]


def test_a_filtered_stream_sends_the_revision_reached(
    gateway: Program, client: Client, organization: str
) -> None:
    """By an id without data, which is no event (WHATWG HTML, 9.2.6)."""
    move(client)
    with Events(gateway, organization, None, {"resourceId": "other"}) as stream:
        lines = [stream.response.readline() for _ in range(4)]
    assert lines[0].startswith(b"retry: ")
    assert lines[1:] == [b"\n", b"id: 3\n", b"\n"]
    # Without changes to leave out, that with which it begins.
    with Events(gateway, organization, 3, {"resourceId": "other"}) as stream:
        assert [stream.response.readline() for _ in range(4)][2:] == [b"id: 3\n", b"\n"]


def test_a_client_that_comes_back_continues_after_what_was_left_out(
    start_gateway: StartProgram, service: Program, client: Client, organization: str
) -> None:
    gateway = start_gateway()
    move(client)
    with EventSource(gateway, organization, resourceId="carl") as source:
        until(lambda: source.streams == 1)
        gateway.stop()
        until(lambda: source.last_id == "3")
        again = start_gateway(GATEWAY_PORT=str(gateway.port))
        Client(again, organization).upsert("c", resourceId="carl")
        until(lambda: source.revisions == [4])
    assert source.events[0]["event"] == "created"
