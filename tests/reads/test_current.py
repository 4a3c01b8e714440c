"""Reads of the current state by id share statements."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, LiteralString

import pytest

from service.errors import AppointmentNotFound, Overloaded
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.reads.current import MOST
from service.reads.store import ReadStore
from tests.api import Organization
from tests.databases import database_of

LATEST: dict[str, Any] = {"as_of": None, "at": None, "min_revision": None}


class Counting(Database):
    """Counts statements. While `held`, they wait."""

    held: asyncio.Event | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statements = 0
        self.started = asyncio.Event()

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        self.statements += 1
        self.started.set()
        if self.held is not None:
            await self.held.wait()
        return await super().fetch_across(statement, parameters, raw=raw)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Counting]:
    async with database_of(Counting, database_url, Metrics(), max_waiting=200) as database:
        yield database


async def test_reads_that_wait_share_a_statement(database: Counting, org: Organization) -> None:
    first, second = org, Organization(org.stub, f"{org.id}-second")
    first.upsert("a", 0, 1)
    first.upsert("b", 1, 2)
    second.upsert("a", 5, 6)
    reads = ReadStore(database, None)
    wanted = [(first, "b"), (second, "a"), (first, "missing"), (first, "a"), (second, "a")]

    found = await asyncio.gather(
        *(reads.get(org.id, id, **LATEST) for org, id in wanted), return_exceptions=True
    )

    assert database.statements == 1
    read = [answer for answer in found if not isinstance(answer, BaseException)]
    assert [(each.organization_id, each.appointment.id, revision) for each, revision in read] == [
        (first.id, "b", 2),
        (second.id, "a", 1),
        (first.id, "a", 2),
        (second.id, "a", 1),
    ]
    missing = found[2]
    assert isinstance(missing, AppointmentNotFound)
    assert missing.organization_revision == 2


async def test_a_read_shows_what_was_written_while_others_were_read(
    database: Counting, org: Organization
) -> None:
    org.upsert("a", 0, 1)
    reads = ReadStore(database, None)
    earlier = asyncio.create_task(reads.get(org.id, "a", **LATEST))
    await database.started.wait()
    await asyncio.to_thread(org.upsert, "a", 3, 4)

    found, revision = await reads.get(org.id, "a", **LATEST)

    assert (found.appointment.version, revision) == (2, 2)
    await earlier


async def test_a_cancelled_caller_leaves_the_others_their_answers(
    database: Counting, org: Organization
) -> None:
    org.upsert("a", 0, 1)
    reads = ReadStore(database, None)
    database.held = asyncio.Event()
    callers = [asyncio.create_task(reads.get(org.id, "a", **LATEST)) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    database.held.set()

    answers = await asyncio.gather(*callers, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert [type(answer) for answer in answers[1:]] == [tuple, tuple]


async def test_a_statement_has_a_limit(database: Counting, org: Organization) -> None:
    org.upsert("a", 0, 1)
    reads = ReadStore(database, None)

    found = await asyncio.gather(*(reads.get(org.id, "a", **LATEST) for _ in range(MOST + 1)))

    assert database.statements == 2
    assert {each.appointment.id for each, _ in found} == {"a"}


async def test_too_many_that_wait_are_refused(database: Counting, org: Organization) -> None:
    org.upsert("a", 0, 1)
    reads = ReadStore(database, None)
    database.held = asyncio.Event()
    # The first one is alone in its statement.
    callers = [asyncio.create_task(reads.get(org.id, "a", **LATEST))]
    await database.started.wait()
    callers += [
        asyncio.create_task(reads.get(org.id, "a", **LATEST)) for _ in range(database.max_waiting)
    ]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="200 requests wait for the database"):
        await reads.get(org.id, "a", **LATEST)

    database.held.set()
    assert len(await asyncio.gather(*callers)) == 201
