"""What occupies resources within short windows is read by a statement for all that wait."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, LiteralString

import pytest

from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.reads.occupied import Wanted
from service.reads.short_windows import MOST, ShortWindows
from service.reads.store import ReadStore
from service.times import microseconds
from tests.api import MORNING, Organization
from tests.databases import database_of

MINUTE = 60_000_000
START = microseconds(MORNING)
SLOTS = 2


class Holding(Database):
    """Counts statements. While `held`, they wait."""

    held: asyncio.Event | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statements = 0
        self.started = asyncio.Semaphore(0)

    async def fetch(
        self,
        organization_id: str,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        self.statements += 1
        self.started.release()
        if self.held is not None:
            await self.held.wait()
        return await super().fetch(organization_id, statement, parameters, raw=raw)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Holding]:
    async with database_of(Holding, database_url, Metrics(), max_waiting=200) as database:
        yield database


@pytest.fixture
def short(database: Holding) -> ShortWindows:
    return ShortWindows(ReadStore(database, None), asyncio.Semaphore(SLOTS))


def wanted(start: int, end: int, *resource_ids: str) -> Wanted:
    return Wanted(resource_ids, START + start * MINUTE, START + end * MINUTE)


async def occupied(
    short: ShortWindows, org: Organization, wanted: Wanted
) -> list[tuple[str, list[tuple[int, int]]]]:
    page = await short.occupied(org.id, wanted)
    return [
        (each.resource_id, [((a - START) // MINUTE, (b - START) // MINUTE) for a, b in pairs])
        for each in page.items
        for pairs in [zip(*each.ranges, strict=True)]
    ]


async def test_queries_that_wait_share_a_statement_and_get_what_each_asks_for(
    database: Holding, short: ShortWindows, org: Organization
) -> None:
    other = Organization(org.stub, f"{org.id}-other")
    for number, (start, end) in enumerate([(0, 10), (20, 30), (40, 50)]):
        org.upsert(f"r{number}", start, end, resource_id="r")
        org.upsert(f"s{number}", start + 5, end + 5, resource_id="s")
    other.upsert("r", 60, 70, resource_id="r")

    queries = [
        (org, wanted(0, 100, "r", "s")),
        (org, wanted(25, 45, "s", "r", "unused")),
        (other, wanted(0, 100, "s", "r")),
        (org, wanted(10, 20, "r")),
    ]

    found = await asyncio.gather(*(occupied(short, *each) for each in queries))

    assert found == [
        [("r", [(0, 10), (20, 30), (40, 50)]), ("s", [(5, 15), (25, 35), (45, 55)])],
        [("s", [(25, 35)]), ("r", [(20, 30), (40, 50)]), ("unused", [])],
        [("s", []), ("r", [(60, 70)])],
        [("r", [])],
    ]
    assert database.statements == 2  # one for each organization


async def test_a_query_shows_what_was_written_while_others_were_read(
    database: Holding, short: ShortWindows, org: Organization
) -> None:
    database.held = asyncio.Event()
    first = asyncio.create_task(occupied(short, org, wanted(0, 60, "r")))
    await database.started.acquire()
    await asyncio.to_thread(org.upsert, "a", 0, 10, resource_id="r")
    second = asyncio.create_task(occupied(short, org, wanted(0, 60, "r")))
    await asyncio.sleep(0)
    assert database.statements == 1
    database.held.set()

    await first
    assert await second == [("r", [(0, 10)])]


async def test_statements_and_their_queries_are_bounded(
    database: Holding, short: ShortWindows, org: Organization
) -> None:
    others = [Organization(org.stub, f"{org.id}-{number}") for number in range(SLOTS)]
    database.held = asyncio.Event()
    tasks = [
        asyncio.create_task(occupied(short, each, wanted(0, 60, "r")))
        for each in (org, *others)
        for _ in range(MOST + 1)
    ]
    for _ in range(SLOTS):
        await database.started.acquire()
    for _ in range(10):
        await asyncio.sleep(0)
    assert database.statements == SLOTS
    database.held.set()

    assert await asyncio.gather(*tasks) == [[("r", [])]] * len(tasks)
    assert database.statements == 2 * (SLOTS + 1)
