"""Every change reaches every webhook: in order, signed, at least once, despite failures."""

import asyncio
import signal
import threading
from itertools import groupby, pairwise
from time import monotonic
from typing import Any

import psycopg
import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.api import soon
from tests.conftest import StartProgram
from tests.observing import metric, until
from tests.receiver import Received, hang, status
from tests.webhooks.hooked import Hooked

STATE = "SELECT cursor_revision, attempts, disabled, fence FROM webhooks WHERE webhook_id = %s"
TIMED_OUT = 'appointments_webhook_delivery_seconds_count{result="timeout"}'
TAKEN = 'appointments_webhook_delivery_seconds_count{result="taken"}'


def first_of_each(revisions: list[int]) -> list[int]:
    """Drop repetitions, which at-least-once delivery allows."""
    return list(dict.fromkeys(revisions))


def query(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def test_what_is_sent_is_the_change_signed(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a")
    hooked.org.upsert("a", 0, 1, title="é", resource_id="")
    hooked.org.upsert("a", 0, 2)
    hooked.org.cancel("a")
    worker = start()
    until(lambda: hooked.reached(hook) == 3)
    received = hooked.receiver.at("/a")
    for each in received:
        assert Webhook(hook["secret"]).verify(each.text, dict(each.headers)) == each.json
        other = "whsec_" + "QUJD" * 8
        with pytest.raises(WebhookVerificationError):
            Webhook(other).verify(each.text, dict(each.headers))
    assert [each.json["type"] for each in received] == [
        "appointment.created",
        "appointment.updated",
        "appointment.cancelled",
    ]
    entries = hooked.rest.call("GET", "/changes").json["entries"]
    assert [each.json["data"] for each in received] == entries
    assert [each.json["timestamp"] for each in received] == [e["recordedAt"] for e in entries]
    assert entries[0]["appointment"]["organizationId"] == hooked.org.id
    assert "resourceId" in entries[0]["appointment"]
    assert [each.headers["webhook-id"] for each in received] == [
        f"{hook['id']}.{revision}" for revision in (1, 2, 3)
    ]
    log = hooked.deliveries(hook)
    assert [(e["revision"], e["attempt"], e["httpStatus"], e["error"]) for e in log] == [
        (revision, 1, 200, "") for revision in ("1", "2", "3")
    ]
    assert metric(worker, TAKEN) == 3


def test_confirmed_and_expired_holds_are_sent(hooked: Hooked, start: StartProgram) -> None:
    """The worker that sends them records what has expired."""
    hook, expiries = hooked.hook("/a"), hooked.hook("/b", changes=["EXPIRED"])
    start()
    hooked.org.upsert("a", 0, 1, hold_until=soon(60))
    hooked.org.confirm("a")
    hooked.org.upsert("b", 1, 2, hold_until=soon(2.5))
    until(lambda: hooked.reached(hook) == hooked.reached(expiries) == 4)
    received = hooked.receiver.at("/a")
    assert [each.json["type"] for each in received] == [
        "appointment.created",
        "appointment.confirmed",
        "appointment.created",
        "appointment.expired",
    ]
    assert [each.json["data"] for each in received] == hooked.rest.call("GET", "/changes").json[
        "entries"
    ]
    assert [each.json for each in hooked.receiver.at("/b")] == [received[3].json]
    assert received[3].json["data"]["appointment"]["state"] == "EXPIRED"


def test_both_secrets_sign_until_the_old_one_ends(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a")
    start()
    new = hooked.rest.call("POST", f"/webhooks/{hook['id']}:rotateSecret").json["secret"]
    hooked.write(1)
    until(lambda: len(hooked.receiver.at("/a")) == 1)
    [received] = hooked.receiver.at("/a")
    for secret in (hook["secret"], new):
        Webhook(secret).verify(received.text, dict(received.headers))

    written = 1

    def ended() -> bool:
        nonlocal written
        hooked.write(1, first=written)
        written += 1
        until(lambda: len(hooked.receiver.at("/a")) == written)
        return len(hooked.receiver.at("/a")[-1].headers["webhook-signature"].split()) == 1

    until(ended)
    last = hooked.receiver.at("/a")[-1]
    Webhook(new).verify(last.text, dict(last.headers))


def test_a_receiver_that_fails_a_third_of_the_time_gets_all_in_order(
    hooked: Hooked, start: StartProgram
) -> None:
    count = 0

    async def flaky(received: Received) -> web.Response:
        nonlocal count
        count += 1
        return web.Response(status=503 if count % 3 == 0 else 204)

    hooked.receiver.answers["/a"] = flaky
    hook = hooked.hook("/a")
    hooked.write(60)
    start()
    until(lambda: hooked.reached(hook) == 60)
    revisions = hooked.receiver.revisions("/a")
    assert first_of_each(revisions) == list(range(1, 61))
    assert revisions == sorted(revisions)
    log = hooked.deliveries(hook)
    taken = [each for each in log if not each["error"]]
    assert [int(each["revision"]) for each in taken] == list(range(1, 61))
    assert len(log) > 85
    for _, attempts in groupby(log, key=lambda each: each["revision"]):
        assert [each["attempt"] for each in attempts][-1] in {1, 2}
    failed = next(each for each in log if each["error"])
    assert (failed["httpStatus"], failed["error"]) == (
        503,
        "the answer was 503 Service Unavailable",
    )
    same = [e for e in hooked.receiver.at("/a") if e.revision == int(failed["revision"])]
    assert len({each.headers["webhook-id"] for each in same}) == 1
    assert len({each.text for each in same}) == 1


def test_hanging_receivers_delay_nobody(hooked: Hooked, start: StartProgram) -> None:
    """There are more of them than slots, and all are due again at once."""
    for number in range(12):
        hooked.receiver.answers[f"/hangs/{number}"] = hang
        hooked.hook(f"/hangs/{number}")
    hook = hooked.hook("/well")
    start(WEBHOOK_CONCURRENCY="8", WEBHOOK_TIMEOUT="0.5", WEBHOOK_LEASE="5")
    hooked.write(1)
    until(lambda: sum(map(len, map(hooked.receiver.at, HANGING))) >= 24)
    delays = []
    for number in range(1, 11):
        began = monotonic()
        hooked.write(1, first=number)
        until(lambda count=number + 1: len(hooked.receiver.at("/well")) == count)  # type: ignore[misc]
        delays.append(hooked.receiver.at("/well")[-1].at - began)
    assert max(delays) < 0.4, delays
    assert hooked.reached(hook) >= 10


HANGING = [f"/hangs/{number}" for number in range(12)]


def test_410_disables_at_once_and_enabling_goes_on(hooked: Hooked, start: StartProgram) -> None:
    hooked.receiver.answers["/a"] = status(410)
    hook = hooked.hook("/a")
    hooked.write(2)
    start()
    until(lambda: bool(hooked.read(hook)["disabled"]))
    assert hooked.read(hook)["disabledReason"] == "the receiver answered 410 Gone"
    assert hooked.receiver.revisions("/a") == [1]
    del hooked.receiver.answers["/a"]
    hooked.replace(hook, disabled=False)
    until(lambda: hooked.reached(hook) == 2)
    assert hooked.receiver.revisions("/a") == [1, 1, 2]
    assert hooked.read(hook)["disabledReason"] == ""


@pytest.mark.parametrize("code", [301, 302, 307, 400, 500])
def test_other_answers_are_failures(hooked: Hooked, start: StartProgram, code: int) -> None:
    hooked.receiver.answers["/a"] = status(code, Location="/elsewhere")
    hook = hooked.hook("/a")
    hooked.write(1)
    start()
    until(lambda: hooked.read(hook)["failedAttempts"] >= 3)
    found = hooked.read(hook)
    assert (found["deliveredRevision"], found["disabled"]) == ("0", False)
    assert found["failingSince"] <= found["nextAttemptAt"]
    assert {each["httpStatus"] for each in hooked.deliveries(hook)} == {code}
    assert not hooked.receiver.at("/elsewhere")


def test_waits_grow(hooked: Hooked, start: StartProgram) -> None:
    hooked.receiver.answers["/a"] = status(500)
    hook = hooked.hook("/a")
    hooked.write(1)
    start(WEBHOOK_FIRST_RETRY="0.1", WEBHOOK_LONGEST_RETRY="100")
    until(lambda: len(hooked.receiver.at("/a")) == 6)
    waits = [later.at - earlier.at for earlier, later in pairwise(hooked.receiver.at("/a"))]
    for number, wait in enumerate(waits):
        assert 0.05 * 2**number <= wait < 0.1 * 2**number + 1, waits
    assert [each["attempt"] for each in hooked.deliveries(hook)[:5]] == [1, 2, 3, 4, 5]


def test_retry_after_is_heeded_within_bounds(hooked: Hooked, start: StartProgram) -> None:
    hooked.receiver.answers["/a"] = status(503, Retry_After="1")
    hooked.receiver.answers["/b"] = status(503, Retry_After="86400")
    hooked.hook("/a")
    hooked.hook("/b")
    hooked.write(1)
    start(WEBHOOK_FIRST_RETRY="0.01", WEBHOOK_LONGEST_RETRY="2")
    until(lambda: len(hooked.receiver.at("/a")) >= 2 and len(hooked.receiver.at("/b")) >= 2)
    for path, least in (("/a", 1), ("/b", 2)):
        first, second = hooked.receiver.at(path)[:2]
        assert least <= second.at - first.at < least + 2


def test_what_fails_for_too_long_is_disabled_and_loses_nothing(
    hooked: Hooked, start: StartProgram
) -> None:
    hooked.receiver.answers["/a"] = status(500)
    hook = hooked.hook("/a")
    hooked.write(3)
    start(WEBHOOK_GIVE_UP_AFTER="0.5")
    until(lambda: bool(hooked.read(hook)["disabled"]))
    found = hooked.read(hook)
    assert found["disabledReason"].startswith("revision 1 could not be delivered since 20")
    assert found["disabledReason"].endswith("at last: the answer was 500 Internal Server Error")
    assert found["deliveredRevision"] == "0"
    del hooked.receiver.answers["/a"]
    hooked.receiver.requests.clear()
    hooked.replay(hook, 1)
    until(lambda: hooked.reached(hook) == 3)
    assert hooked.receiver.revisions("/a") == [2, 3]


def test_a_filter_passes_over_the_rest(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a", changes=["CANCELLED"])
    hooked.write(70)
    hooked.org.cancel("3")
    hooked.write(1, first=70)
    start()
    until(lambda: hooked.reached(hook) == 72)
    assert hooked.receiver.revisions("/a") == [71]


def test_a_replay_while_it_is_sent_to_begins_again(hooked: Hooked, start: StartProgram) -> None:
    """The worker's later records do not undo it."""
    reached, go_on = threading.Event(), threading.Event()

    async def wait_at_five(received: Received) -> web.Response:
        if received.revision == 5 and not go_on.is_set():
            reached.set()
            await asyncio.to_thread(go_on.wait, 10)
        return web.Response()

    hooked.receiver.answers["/a"] = wait_at_five
    hook = hooked.hook("/a")
    hooked.write(5)
    start(WEBHOOK_TIMEOUT="20", WEBHOOK_LEASE="60")
    assert reached.wait(20)
    hooked.replay(hook, 2)
    go_on.set()
    until(lambda: hooked.receiver.revisions("/a") == [1, 2, 3, 4, 5, 3, 4, 5])
    until(lambda: hooked.reached(hook) == 5)


def test_a_fast_receiver_gets_hundreds_a_second(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a")
    hooked.write(400)
    start()
    until(lambda: hooked.reached(hook) == 400)
    received = hooked.receiver.at("/a")
    assert [each.revision for each in received] == list(range(1, 401))
    seconds = received[-1].at - received[0].at
    assert 400 / seconds > 50, seconds  # on a machine that others use too


def test_two_workers_share_and_each_change_comes_in_order(
    hooked: Hooked, start: StartProgram
) -> None:
    hooks = [hooked.hook(f"/{number}") for number in range(10)]
    workers = [start(WEBHOOK_CONCURRENCY="4") for _ in range(2)]
    hooked.write(40)
    until(lambda: all(hooked.reached(hook) == 40 for hook in hooks))
    for number in range(10):
        assert hooked.receiver.revisions(f"/{number}") == list(range(1, 41))
    assert sum(metric(worker, TAKEN) for worker in workers) == 400
    assert all(metric(worker, TAKEN) > 0 for worker in workers)


def test_a_worker_that_slept_beyond_its_lease_records_nothing(
    hooked: Hooked, start: StartProgram, url: str
) -> None:
    reached = threading.Event()
    release = threading.Event()

    async def wait_once(received: Received) -> web.Response:
        if received.revision == 3 and not reached.is_set():
            reached.set()
            await asyncio.to_thread(release.wait, 30)
        return web.Response()

    hooked.receiver.answers["/a"] = wait_once
    hook = hooked.hook("/a")
    hooked.write(3)
    patient = {"WEBHOOK_TIMEOUT": "1.2", "WEBHOOK_LEASE": "2.4"}
    sleeper = start(**patient)
    assert reached.wait(20)
    sleeper.process.send_signal(signal.SIGSTOP)
    try:
        # Taken after the lease by another one, which goes on beyond.
        other = start(**patient)
        until(lambda: hooked.reached(hook) == 3)
        hooked.write(2, first=3)
        until(lambda: hooked.reached(hook) == 5)
        before = query(url, STATE, hook["id"])
        log = hooked.deliveries(hook)
    finally:
        release.set()
        sleeper.process.send_signal(signal.SIGCONT)
    # It has woken up once it has counted the attempt that it slept through, and has ended
    # its turn once it sends to another webhook, when there is nobody else to do it.
    until(lambda: metric(sleeper, TAKEN) + metric(sleeper, TIMED_OUT) >= 3)
    other.stop()
    second = hooked.hook("/b")
    hooked.replay(second, 0)
    until(lambda: hooked.reached(second) == 5)
    assert query(url, STATE, hook["id"]) == before
    assert hooked.deliveries(hook) == log
    assert first_of_each(hooked.receiver.revisions("/a")) == [1, 2, 3, 4, 5]


def test_a_killed_worker_loses_nothing(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a")
    hooked.write(200)
    worker = start()
    until(lambda: len(hooked.receiver.at("/a")) >= 60)
    worker.kill()
    came = len(hooked.receiver.at("/a"))
    start()
    until(lambda: hooked.reached(hook) == 200)
    revisions = hooked.receiver.revisions("/a")
    assert first_of_each(revisions) == list(range(1, 201))
    # Only the changes that were not recorded were sent again.
    assert len(revisions) - 200 <= 50 + 1
    assert came <= 200


def test_a_worker_that_is_stopped_repeats_nothing(hooked: Hooked, start: StartProgram) -> None:
    hook = hooked.hook("/a")
    hooked.write(200)
    worker = start()
    until(lambda: len(hooked.receiver.at("/a")) >= 60)
    assert worker.stop() == 0
    start(WEBHOOK_LEASE="60")
    until(lambda: hooked.reached(hook) == 200)
    assert hooked.receiver.revisions("/a") == list(range(1, 201))


def test_the_log_is_kept_for_its_time(hooked: Hooked, start: StartProgram, url: str) -> None:
    hook = hooked.hook("/a", disabled=True)
    query(
        url,
        "INSERT INTO webhook_deliveries (organization_id, webhook_id, revision, attempt,"
        " attempted_at, duration_ms, http_status, error)"
        " SELECT %s, %s, number, 1, now() - number * interval '1 minute', 1, 200, ''"
        " FROM generate_series(1, 2500) AS number",
        hooked.org.id,
        hook["id"],
    )
    start(WEBHOOK_LOG_RETENTION=str(60 * 10 + 30))
    until(lambda: len(hooked.deliveries(hook)) == 10)
    assert [int(each["revision"]) for each in hooked.deliveries(hook)] == list(range(1, 11))
