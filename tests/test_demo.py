"""The demos succeed on a running gateway, and detect errors of the service."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from demo import collisions
from demo.collisions import Result
from demo.model import Booking, decide, final_states
from demo.rest import Rest
from local.programs import ROOT, Program
from local.stack import base_environment

pytestmark = pytest.mark.slow


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command of `make demo`."""
    return subprocess.run(
        [sys.executable, "-m", "demo", *arguments],
        cwd=ROOT,
        env={**base_environment(), "GATEWAY_PORT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("requests", [100, 1000])
async def test_the_seven_bodies_at_random(
    gateway: Program, organization: str, requests: int
) -> None:
    async with Rest.connected(gateway.url) as rest:
        result = await collisions.send(rest, organization, requests, seed=requests)
    assert len(result.answers) == requests
    assert {guarantee for guarantee, failures in result.failures.items() if failures} == set()
    assert len(result.failures) == 6


def test_the_command_draws_the_same_requests_from_the_same_seed(
    gateway: Program, organization: str
) -> None:
    done = demo("--url", gateway.url, "--organization", organization, "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{organization}, --seed 7" in done.stdout
    assert done.stdout.count("\nok ") == 6
    again = demo("--url", gateway.url, "--seed", "7")
    # The fifth body is always refused.
    refused = [line for line in done.stdout.splitlines() if "INVALID_FIELD" in line]
    assert refused
    assert refused == [line for line in again.stdout.splitlines() if "INVALID_FIELD" in line]


def test_the_command_starts_what_it_needs() -> None:
    done = demo("--requests", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting everything" in done.stdout
    assert "FAILED" not in done.stdout


def test_a_gateway_that_does_not_answer_is_one_line() -> None:
    done = demo("--url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "demo: no gateway is ready at http://127.0.0.1:1\n"


def test_fosdem_twice(service: Program, organization: str) -> None:
    first = demo("fosdem", "--address", service.address, "--organization", organization)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "779 CREATED, 1 TIME_RANGE_CONFLICT" in first.stdout
    for part in (
        "AMENDMENT Interactive discussion on organizing LLVM socials/meetups (id 15105",
        "CANCELLED Eliminating ManagedStatic and llvm_shutdown (id 13725",
        "room AW1.120, Sat 04 Feb 2023 15:50-16:00",
    ):
        assert part in first.stdout
    second = demo("fosdem", "--address", service.address, "--organization", organization)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 TIME_RANGE_CONFLICT, 779 UNCHANGED" in second.stdout


def test_fosdem_without_a_service_is_a_failure() -> None:
    done = demo("fosdem", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no service answers at 127.0.0.1:1" in done.stderr


def test_fosdem_in_a_database_of_its_own_ends_with_a_check_of_it() -> None:
    done = demo("fosdem")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "779 CREATED, 1 TIME_RANGE_CONFLICT" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("sound: organizations 1, appointments 779, changes 779;")


async def test_fosdem_with_something_else_in_a_room_is_a_failure(
    service: Program, gateway: Program, organization: str
) -> None:
    async with Rest.connected(gateway.url) as rest:
        await rest.upsert(
            {
                "organizationId": organization,
                "resourceId": "Janson",
                "id": "somebody else's",
                "start": "2023-02-04T09:00:00+01:00",
                "end": "2023-02-04T09:31:00+01:00",
            }
        )
    done = demo("fosdem", "--address", service.address, "--organization", organization)
    assert done.returncode == 1
    assert "778 CREATED, 2 TIME_RANGE_CONFLICT" in done.stdout


def body(id: str, start: int, end: int, updated: int = 0) -> dict[str, Any]:
    return {
        "id": id,
        "start": f"2020-01-01 {start:02}:00",
        "end": f"2020-01-01 {end:02}:00",
        "createdAt": "2020-01-01 00:00",
        "updatedAt": f"2020-01-02 {updated:02}:00",
    }


def test_the_model_follows_the_write_rules() -> None:
    first, moved = Booking.of(body("1", 10, 12)), Booking.of(body("1", 14, 15, updated=1))
    other = Booking.of(body("2", 11, 13))
    state = frozenset({first})
    assert decide(frozenset(), Booking.of(body("1", 12, 12))).status == 400
    assert decide(frozenset(), first).outcome == "CREATED"
    assert decide(state, first).outcome == "UNCHANGED"
    assert decide(state, other).conflicts == {"1"}
    assert decide(state, Booking.of(body("2", 12, 13))).status == 201
    assert decide(state, moved).state == {moved}
    assert decide(frozenset({moved}), first).outcome == "STALE"
    # Moving the first frees its range for the other, but not the other way round.
    assert final_states(frozenset(), [first, other, moved]) == {
        frozenset({moved}),
        frozenset({moved, other}),
    }


@pytest.fixture
async def result(gateway: Program, organization: str) -> Result:
    async with Rest.connected(gateway.url) as rest:
        return await collisions.send(rest, organization, 50, seed=1)


def broken(result: Result, **seen: Any) -> set[str]:
    """Return the guarantees that the check reports as violated for a changed result."""
    checked = collisions.check(replace(result, **seen, failures={}))
    return {guarantee for guarantee, failures in checked.failures.items() if failures}


def test_the_check_notices_an_overlap(result: Result) -> None:
    overlapping = {**result.listed[0], "id": "8"}
    assert "no two appointments overlap" in broken(result, listed=[*result.listed, overlapping])


def test_the_check_notices_a_lost_change(result: Result) -> None:
    found = broken(result, history=result.history[:-1])
    assert "history replays to the stored state" in found
    assert "every response matches the state at its revision" in found


def test_the_check_notices_a_gap(result: Result) -> None:
    history = [result.history[0], *({**entry, "revision": "9"} for entry in result.history[1:])]
    assert "history has no gap" in broken(result, history=history)


def test_the_check_notices_a_lost_appointment(result: Result) -> None:
    # Not 2 or 3: without either, the state would be that of another order.
    found = broken(result, listed=[stored for stored in result.listed if stored["id"] != "4"])
    assert "history replays to the stored state" in found
    assert any("possible ones" in guarantee for guarantee in found)


def test_the_check_notices_a_wrong_answer(result: Result) -> None:
    answers = [
        (written, replace(answer, status=201, outcome="CREATED"))
        if answer.outcome == "UNCHANGED"
        else (written, answer)
        for written, answer in result.answers
    ]
    assert broken(result, answers=answers) == {"every response matches the state at its revision"}


def test_the_check_notices_a_status_that_is_not_allowed(result: Result) -> None:
    written, answer = result.answers[0]
    answers = [(written, replace(answer, status=503)), *result.answers[1:]]
    assert "only 200, 201, 400 and 409" in broken(result, answers=answers)
