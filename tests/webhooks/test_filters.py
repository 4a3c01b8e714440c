"""Webhooks that select changes of one resource, or of some kinds."""

import asyncio
import json
import threading
import time
from typing import Any

import psycopg
import pytest
from aiohttp import web

from service.webhooks.delivery import GROUP_SECONDS
from tests.api import soon
from tests.conftest import StartProgram
from tests.observing import until
from tests.receiver import Received, status
from tests.webhooks.hooked import Hooked


def fence(url: str, hook: dict[str, Any]) -> int:
    """Return how often the webhook was claimed."""
    with psycopg.connect(url) as database:
        row = database.execute("SELECT fence FROM webhooks WHERE webhook_id = %s", (hook["id"],))
        [(claims,)] = row.fetchall()
        return int(claims)


def test_the_resource_is_stored_shown_and_replaced(hooked: Hooked) -> None:
    hook = hooked.hook("/a", resourceId="anna", changes=["CREATED"])
    assert hook["resourceId"] == "anna"
    assert hooked.read(hook)["resourceId"] == "anna"
    [listed] = hooked.rest.call("GET", "/webhooks").json["webhooks"]
    assert listed["resourceId"] == "anna"
    hooked.replace(hook, resourceId="bob")
    assert hooked.read(hook)["resourceId"] == "bob"
    hooked.replay(hook, 0)
    assert hooked.read(hook)["resourceId"] == "bob"
    hooked.replace(hook, resourceId="")
    assert hooked.read(hook)["resourceId"] == ""
    everything = {key: value for key, value in hooked.read(hook).items() if key != "resourceId"}
    hooked.put(hook, everything)
    assert "resourceId" not in hooked.read(hook)


def test_a_resource_that_breaks_a_rule_is_named(hooked: Hooked) -> None:
    body = {"organizationId": hooked.org.id, "url": hooked.receiver.url("/a")}
    for resource in ("x" * 257, "a\nb"):
        text = json.dumps({**body, "resourceId": resource}).encode()
        refused = hooked.rest.send("POST", "/api/webhooks", text, Content_Type="application/json")
        assert (refused.status, refused.fields) == (400, {"resourceId"})


def test_a_move_reaches_the_webhooks_of_both_resources(hooked: Hooked, start: StartProgram) -> None:
    of_anna = hooked.hook("/anna", resourceId="anna")
    of_bob = hooked.hook("/bob", resourceId="bob")
    hooked.org.upsert("a", 0, 30, resource_id="anna")
    hooked.org.upsert("b", 0, 30, resource_id="carl", additional_resource_ids=["bob"])
    hooked.org.upsert("a", 30, 60, resource_id="bob")
    hooked.org.upsert("c", 0, 30, resource_id="dora")
    start()
    until(lambda: hooked.reached(of_anna) == hooked.reached(of_bob) == 4)
    assert hooked.receiver.revisions("/anna") == [1, 3]
    assert hooked.receiver.revisions("/bob") == [2, 3]
    # What is left out makes no attempt.
    assert [each["revision"] for each in hooked.deliveries(of_anna)] == ["1", "3"]


def test_confirmations_and_expiries_of_a_resource_arrive(
    hooked: Hooked, start: StartProgram
) -> None:
    hook = hooked.hook("/a", resourceId="anna", changes=["CONFIRMED", "EXPIRED"])
    hooked.org.upsert("a", 0, 30, resource_id="anna", hold_until=soon(60))
    hooked.org.confirm("a")
    hooked.org.upsert("b", 30, 60, resource_id="anna", hold_until=soon(1.5))
    hooked.org.upsert("c", 0, 30, resource_id="bob", hold_until=soon(60))
    hooked.org.confirm("c")
    start()
    until(lambda: hooked.org.get("b").etag.endswith("x"))
    hooked.org.upsert("d", 30, 60, resource_id="anna")
    until(lambda: hooked.reached(hook) == len(hooked.org.changes()))
    received = hooked.receiver.at("/a")
    assert [each.json["type"] for each in received] == [
        "appointment.confirmed",
        "appointment.expired",
    ]
    assert [each.json["data"]["appointment"]["id"] for each in received] == ["a", "b"]


def test_a_redaction_arrives_whatever_the_filter(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a", resourceId="anna", changes=["CREATED"])
    assert hook["changes"] == ["CREATED"]
    alone = hooked.hook("/b", changes=["REDACTED"])
    hooked.org.upsert("a", 0, 30, resource_id="anna", title="Eve")
    hooked.org.upsert("a", 0, 30, resource_id="bob", title="Eve")
    hooked.org.redact("a")
    start()
    until(lambda: hooked.reached(hook) == hooked.reached(alone) == 3)
    received = hooked.receiver.at("/a")
    assert [each.json["type"] for each in received] == [
        "appointment.created",
        "appointment.redacted",
    ]
    assert not any("Eve" in each.text for each in received)
    assert hooked.receiver.revisions("/b") == [3]


def test_many_changes_are_passed_over_at_once(
    hooked: Hooked, start: StartProgram, url: str
) -> None:
    hook = hooked.hook("/a", resourceId="anna")
    hooked.write(300)
    hooked.org.upsert("a", 0, 30, resource_id="anna")
    start()
    until(lambda: hooked.reached(hook) == 301)
    assert hooked.receiver.revisions("/a") == [301]
    assert fence(url, hook) == 1


def test_attempts_count_for_a_change_behind_others_that_are_left_out(
    hooked: Hooked, start: StartProgram
) -> None:
    hooked.receiver.answers["/a"] = status(500)
    hook = hooked.hook("/a", resourceId="anna")
    hooked.write(3)
    hooked.org.upsert("a", 0, 30, resource_id="anna")
    start()
    until(lambda: len(hooked.deliveries(hook)) >= 3)
    assert hooked.reached(hook) == 3
    del hooked.receiver.answers["/a"]
    until(lambda: hooked.reached(hook) == 4)
    log = hooked.deliveries(hook)
    assert {each["revision"] for each in log} == {"4"}
    assert [each["attempt"] for each in log] == list(range(1, len(log) + 1))


@pytest.mark.parametrize("wider", [False, True])
def test_a_filter_that_changes_meanwhile_holds_for_what_follows(
    hooked: Hooked, start: StartProgram, wider: bool
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    async def wait_at_the_first(received: Received) -> web.Response:
        if received.revision == 1:
            reached.set()
            await asyncio.to_thread(go_on.wait, 10)
        return web.Response()

    hooked.receiver.answers["/a"] = wait_at_the_first
    hook = hooked.hook("/a", resourceId="anna")
    for minute, resource in enumerate(["anna", "bob", "anna", "bob", "anna"]):
        hooked.org.upsert(f"{minute}", minute, minute + 1, resource_id=resource)
    start(WEBHOOK_TIMEOUT="20", WEBHOOK_LEASE="60")
    assert reached.wait(10)
    # The request in flight lasts longer than a group, so that it is recorded when it ends.
    started = hooked.receiver.at("/a")[0].at
    until(lambda: time.monotonic() - started > 1.1 * GROUP_SECONDS)
    wanted = hooked.read(hook)
    del wanted["resourceId"]
    hooked.put(hook, wanted if wider else {**wanted, "resourceId": "bob"})
    go_on.set()
    until(lambda: hooked.reached(hook) == 5)
    assert hooked.receiver.revisions("/a") == ([1, 2, 3, 4, 5] if wider else [1, 2, 4])
