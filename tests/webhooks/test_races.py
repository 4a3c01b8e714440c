"""Webhooks that are changed while something is being sent, and workers that stop meanwhile."""

import asyncio
import signal
import threading
from collections.abc import Callable

import psycopg
import pytest
from aiohttp import web

from tests.conftest import StartProgram
from tests.observing import until
from tests.receiver import Received
from tests.webhooks.hooked import QUICK, Hooked

# A request may be held for long, and a failure is not retried within a test.
UNHURRIED = {
    **QUICK,
    "WEBHOOK_TIMEOUT": "20",
    "WEBHOOK_LEASE": "60",
    "WEBHOOK_FIRST_RETRY": "600",
    "WEBHOOK_LONGEST_RETRY": "600",
}


@pytest.mark.parametrize("code", [410, 500])
@pytest.mark.parametrize("change", ["url", "replay"])
def test_what_was_sent_before_a_change_is_not_held_against_the_webhook_after_it(
    hooked: Hooked, start_worker: StartProgram, url: str, change: str, code: int
) -> None:
    mended = threading.Event()

    async def refuse(received: Received) -> web.Response:
        if mended.is_set():
            return web.Response()
        await asyncio.to_thread(mended.wait, 20)
        return web.Response(status=code)

    hooked.receiver.answers["/old"] = refuse
    hook = hooked.hook("/old")
    hooked.write(1)
    worker = start_worker(DATABASE_URL=url, **UNHURRIED)
    until(lambda: len(hooked.receiver.at("/old")) == 1)
    changes: dict[str, Callable[[], None]] = {
        "url": lambda: hooked.replace(hook, url=hooked.receiver.url("/new")),
        "replay": lambda: hooked.replay(hook, 0),
    }
    changes[change]()
    mended.set()
    until(lambda: hooked.reached(hook) == 1)
    assert not hooked.read(hook)["disabled"]
    assert hooked.receiver.revisions("/new" if change == "url" else "/old")[-1:] == [1]
    # The log still contains the failed attempt.
    assert [each.get("httpStatus") for each in hooked.deliveries(hook)] == [code, 200]
    assert worker.stop() == 0


def test_what_is_being_claimed_when_the_worker_stops_is_let_go(
    hooked: Hooked, start_worker: StartProgram, url: str
) -> None:
    hook = hooked.hook("/hook")
    hooked.write(1)
    with psycopg.connect(url) as sql:
        sql.execute("LOCK TABLE webhooks IN EXCLUSIVE MODE")
        worker = start_worker(
            DATABASE_URL=url, LOCK_TIMEOUT="60", STATEMENT_TIMEOUT="60", **UNHURRIED
        )
        until(
            lambda: (
                sql.execute(
                    "SELECT count(*) FROM pg_locks"
                    " WHERE relation = 'webhooks'::regclass AND NOT granted"
                ).fetchone()
                == (1,)
            )
        )
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_event(lambda event: event["event"] == "stopping")
        sql.rollback()
        assert worker.process.wait(10) == 0
        held = sql.execute("SELECT webhook_id FROM webhooks WHERE leased_until > now()").fetchall()
        assert held == []
    start_worker(DATABASE_URL=url, **UNHURRIED)
    until(lambda: hooked.reached(hook) == 1, within=10)
