"""Lists of the past, compared with a naive evaluation of the whole history."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import psycopg
import pytest

from service.domain import ALL_CHANGES, Appointment, State
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.store import ReadStore
from service.reads.window import Window
from tests.conftest import CreateDatabase
from tests.databases import database_of

START = datetime(2030, 1, 1, tzinfo=UTC)
IDS = [f"appointment {number}" for number in range(12)]
RESOURCES = ["room 1", "room 2", "room 3"]
# Hours; shorter and longer than what the list looks for in different indexes.
DURATIONS = [0.5, 1, 8, 8.5, 30]
# By the clock of the database.
HELD_UNTIL = datetime.now(UTC) + timedelta(days=1)
WRITES = 80
LISTS = 100


def random_writes(random: Random, ids: Sequence[str]) -> list[dict[str, Any]]:
    """A cancel; or an upsert, and others that leave much as it was."""
    write = {"id": random.choice(ids), "actor": "", "validate_only": False}
    if random.random() < 0.2:
        return [{"kind": "CANCEL", **write}]
    start = START + timedelta(hours=random.randrange(-20, 60))
    upsert = {
        "kind": "UPSERT",
        **write,
        **random_resources(random),
        "start_time": str(start),
        "end_time": str(start + timedelta(hours=random.choice(DURATIONS))),
        "title": "",
        "attributes": {},
        "create_only": False,
        "hold_until": random.choice([None, None, str(HELD_UNTIL)]),
        "max_hold": timedelta(days=2).total_seconds(),
    }
    changes: list[dict[str, Any]] = [
        {},
        {"title": "changed"},
        random_resources(random),
        {"hold_until": None},
        {"end_time": str(start + timedelta(hours=random.choice(DURATIONS)))},
    ]
    return [{**upsert, **random.choice(changes)} for _ in range(random.randint(1, 3))]


def random_resources(random: Random) -> dict[str, Any]:
    resource, *others = random.sample(RESOURCES, random.choice([1, 1, 2, 3]))
    return {"resource_id": resource, "additional_resource_ids": others or None}


def random_time(random: Random) -> datetime | None:
    return random.choice([None, START + timedelta(hours=random.randrange(-24, 80) / 2)])


def random_window(random: Random) -> Window:
    start, end = random_time(random), random_time(random)
    if start and end and end < start:
        start, end = end, start
    return Window(
        resource_id=random.choice([None, *RESOURCES]),
        start=start,
        end=end,
        include_cancelled=random.random() < 0.5,
    )


def write(connection: psycopg.Connection, organization: str, random: Random) -> None:
    """Make a history. Some writes are refused, as they overlap others."""
    # With a few, most places have been left.
    ids = IDS[: random.choice([2, len(IDS)])]
    writes = [each for _ in range(WRITES) for each in random_writes(random, ids)]
    connection.execute("SELECT FROM apply_writes(%s, %s::json)", (organization, json.dumps(writes)))
    # Some holds have ended by any time that is read.
    connection.execute(
        "UPDATE appointment_history SET hold_until = recorded_at - interval '1 hour'"
        " WHERE hold_until IS NOT NULL AND revision % 2 = 0"
    )


def naive(
    changes: Sequence[Appointment], window: Window, as_of: int, clock: datetime
) -> list[Appointment]:
    """The states after a revision that a window shows, in the order of a list."""
    states = {change.id: change for change in changes if change.revision <= as_of}
    for state in states.values():
        if state.state is State.HELD and state.hold_until and state.hold_until <= clock:
            states[state.id] = state._replace(state=State.EXPIRED)
    return sorted(
        (state for state in states.values() if _shown(state, window)),
        key=lambda state: (state.start, state.id),
    )


def _shown(state: Appointment, window: Window) -> bool:
    if window.resource_id not in (None, state.resource_id, *state.additional_resource_ids):
        return False
    if state.state not in (State.ACTIVE, State.HELD) and not window.include_cancelled:
        return False
    if window.start is not None and state.end <= window.start:
        return False
    if window.end is None:
        return True
    return state.start < window.end or window.start == window.end == state.start


@pytest.mark.parametrize("seed", range(8))
async def test_every_list_of_the_past_is_what_the_history_says(
    create_database: CreateDatabase, seed: int
) -> None:
    random = Random(seed)
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        for organization in ("other", "organization"):
            write(connection, organization, random)
    async with database_of(Database, url, Metrics()) as database:
        reads = ReadStore(database, None)
        history = await reads.changes(
            "organization", ALL_CHANGES, after=0, limit=1000, min_revision=None
        )
        changes = [entry.appointment for entry in history.items]
        assert len(changes) > WRITES / 4
        for _ in range(LISTS):
            window = random_window(random)
            as_of = random.randint(0, len(changes))
            expected = naive(changes, window, as_of, datetime.now(UTC))
            limit = random.choice([1, 2, 5, 100])
            found: list[Appointment] = []
            while True:
                page = await reads.list(
                    "organization",
                    window,
                    after=(found[-1].start, found[-1].id) if found else None,
                    limit=limit,
                    as_of=as_of,
                    at=None,
                    min_revision=None,
                )
                found += [each.appointment for each in page.items]
                if len(page.items) < limit:
                    break
            assert found == expected, (window, as_of, limit)
