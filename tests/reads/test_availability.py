"""Availability of what is stored: what occupies resources, and what the service offers."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import availability_pb2 as rpc
from google.protobuf.timestamp_pb2 import Timestamp

from runtime.helper import Helper
from service.errors import InvalidFields
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.moments import Moments
from service.reads.occupied import Occupied, Wanted
from service.reads.store import Page, ReadStore
from service.rpc import availability
from service.rpc.availability import AvailabilityReader
from service.rpc.context import read_context
from service.rpc.handler import Call
from service.server import AVAILABILITY_HELPER
from tests.api import TIMEOUT, Organization, refusal, soon
from tests.availability.asking import (
    ALL,
    DAY,
    Span,
    minute,
    minutes,
    query,
    refused,
    request_of,
    spans,
)
from tests.conftest import CreateDatabase
from tests.databases import database_of


def test_busy_and_free_of_one_resource(org: Organization) -> None:
    org.upsert("a", 10, 20)
    org.upsert("b", 20, 30)
    org.upsert("c", 40, 50)
    org.upsert("elsewhere", 0, 60, resource_id="r")

    found = query(org, 0, 60)

    [resource] = found.resources
    assert resource.resource_id == ""
    assert resource.HasField("resource_id")
    assert spans(resource.busy) == [(10, 30), (40, 50)]
    assert spans(resource.free) == [(0, 10), (30, 40), (50, 60)]
    assert list(resource.starts) == []
    assert not found.more_starts
    assert found.revision == 4


def test_what_is_cancelled_is_free(org: Organization) -> None:
    org.upsert("a", 10, 20)
    org.cancel("a")
    assert spans(query(org, 0, 60).resources[0].free) == [(0, 60)]


def test_what_began_before_and_ends_after_is_cut(org: Organization) -> None:
    org.upsert("long", -3650 * DAY, 10)
    org.upsert("later", 50, 3600 * DAY)
    org.upsert("outside", -3651 * DAY, -3650 * DAY)

    [resource] = query(org, 0, 60).resources
    assert spans(resource.busy) == [(0, 10), (50, 60)]
    assert spans(resource.free) == [(10, 50)]
    [resource] = query(org, 20, 30).resources
    assert (spans(resource.busy), spans(resource.free)) == ([], [(20, 30)])
    [resource] = query(org, 60, 70).resources
    assert (spans(resource.busy), spans(resource.free)) == ([(60, 70)], [])


def test_a_hold_counts_until_it_expires(org: Organization) -> None:
    """Also for a query that is repeated, while no change records that it has expired."""
    org.upsert("a", 0, 10)
    org.upsert("held", 20, 30, hold_until=soon(2.5))
    expected = [(0, 10), (20, 30)]
    began = time.monotonic()
    while (found := spans(query(org, 0, 60).resources[0].busy)) == expected:
        assert time.monotonic() - began < 5  # less than a page is kept
    assert found == [(0, 10)]
    assert spans(query(org, 0, 60, as_of_revision=2).resources[0].busy) == expected


def test_further_resources_are_occupied_too(org: Organization) -> None:
    org.upsert("a", 0, 10, resource_id="doctor", additional_resource_ids=["room", "nurse"])
    org.upsert("a", 20, 30, resource_id="doctor", additional_resource_ids=["nurse"])

    def busy(**fields: Any) -> list[list[Span]]:
        found = query(org, 0, 60, "doctor", "room", "nurse", **fields)
        return [spans(each.busy) for each in found.resources]

    assert busy() == [[(20, 30)], [], [(20, 30)]]
    assert busy(as_of_revision=1) == [[(0, 10)]] * 3
    assert spans(query(org, 0, 60, "doctor", "room", "nurse", match=ALL).resources[0].free) == [
        (0, 20),
        (30, 60),
    ]


def test_resources_come_in_the_order_of_the_request(org: Organization) -> None:
    for number, name in enumerate(("b", "a", "c")):
        org.upsert(name, number, number + 1, resource_id=name)

    found = query(org, 0, 10, "c", "unused", "a", "b")

    assert [each.resource_id for each in found.resources] == ["c", "unused", "a", "b"]
    assert [spans(each.busy) for each in found.resources] == [[(2, 3)], [], [(1, 2)], [(0, 1)]]


def test_all_resources_at_once(org: Organization) -> None:
    org.upsert("a", 0, 20, resource_id="doctor")
    org.upsert("b", 10, 30, resource_id="room")

    [both] = query(org, 0, 60, "doctor", "room", match=ALL).resources

    assert not both.HasField("resource_id")
    assert spans(both.busy) == [(0, 30)]
    assert spans(both.free) == [(30, 60)]


def test_starts_by_duration_granularity_and_buffers(org: Organization) -> None:
    org.upsert("a", 60, 90)

    [resource] = query(
        org, 0, 180, duration=30, granularity=15, buffer_before=10, buffer_after=5
    ).resources

    assert spans(resource.free) == [(0, 55), (100, 180)]
    assert [minute(start) for start in resource.starts] == [0, 15, 105, 120, 135, 150]


def test_the_granularity_is_the_duration_unless_another_is_given(org: Organization) -> None:
    org.upsert("a", 10, 20)
    [resource] = query(org, 0, 45, granularity=15).resources
    assert spans(resource.free) == [(20, 45)]
    assert [minute(start) for start in resource.starts] == [30]


def test_what_occupies_just_outside_counts_for_the_buffers(org: Organization) -> None:
    org.upsert("before", -10, -5)
    org.upsert("after", 65, 70)
    [resource] = query(org, 0, 60, buffer_before=15, buffer_after=30).resources
    assert spans(resource.busy) == []
    assert spans(resource.free) == [(10, 35)]


def test_opening_hours_in_a_time_zone(org: Organization) -> None:
    """The morning is 08:00 in UTC, 09:00 in Berlin, on a Monday."""
    org.upsert("a", 120, 180)
    [resource] = query(
        org, -8 * 60, DAY, opening_hours=["Mo 10:00-12:30"], time_zone="Europe/Berlin"
    ).resources
    assert spans(resource.busy) == [(120, 180)]
    assert spans(resource.free) == [(60, 120), (180, 210)]


def test_the_past_as_of_a_revision(org: Organization) -> None:
    org.upsert("a", 0, 10)
    org.upsert("a", 20, 30)
    org.upsert("b", 40, 50)
    org.cancel("b")
    org.upsert("other", 0, 60, resource_id="r")

    def busy_at(revision: int) -> list[Span]:
        found = query(org, 0, 60, as_of_revision=revision)
        assert found.revision == revision
        return spans(found.resources[0].busy)

    assert [busy_at(revision) for revision in range(5)] == [
        [],
        [(0, 10)],
        [(20, 30)],
        [(20, 30), (40, 50)],
        [(20, 30)],
    ]
    assert spans(query(org, 0, 60, "r", as_of_revision=4).resources[0].busy) == []
    assert refused(org, 0, 60, as_of_revision=6).fields.keys() == {"as_of_revision"}


def test_a_revision_that_a_replica_must_have(org: Organization) -> None:
    org.upsert("a", 0, 10)
    assert query(org, 0, 60, min_revision=1).revision == 1
    error = refused(org, 0, 60, min_revision=2)
    assert error.fields.keys() == {"min_revision"}
    assert error.organization_revision == 1


def test_an_organization_without_appointments_is_free(org: Organization) -> None:
    found = query(org, 0, 60, "a", "b")
    assert found.revision == 0
    assert [spans(each.free) for each in found.resources] == [[(0, 60)], [(0, 60)]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start": 60}, "to"),
        ({"end": 60 + 366 * DAY}, "to"),
        ({"ids": ["a"] * 2}, "resource_id[1]"),
        ({"ids": [str(number) for number in range(101)]}, "resource_id"),
        ({"ids": ["x" * 257]}, "resource_id[0]"),
        ({"match": 7}, "match"),
        ({"duration": 0}, "duration"),
        ({"duration": 3654 * DAY}, "duration"),
        ({"granularity": -1}, "granularity"),
        ({"granularity": DAY + 1}, "granularity"),
        ({"buffer_before": -1}, "buffer_before"),
        ({"buffer_after": 32 * DAY}, "buffer_after"),
        ({"opening_hours": ["Mo-Fr 09:00-17:00"]}, "time_zone"),
        (
            {"opening_hours": ["Mo 09:00-17:00", "Mo 9-5"], "time_zone": "UTC"},
            "opening_hours[1]",
        ),
        ({"time_zone": "Europe/Bonn"}, "time_zone"),
        ({"time_zone": "../UTC"}, "time_zone"),
        ({"time_zone": "America"}, "time_zone"),
        ({"min_revision": -1}, "min_revision"),
    ],
)
def test_what_breaks_a_rule_is_named(org: Organization, fields: dict[str, Any], named: str) -> None:
    fields = {"start": 0, "end": 60, "ids": (), **fields}
    error = refused(org, fields.pop("start"), fields.pop("end"), *fields.pop("ids"), **fields)
    assert (error.reason, set(error.fields)) == ("INVALID_FIELD", {named})


def test_everything_that_is_missing_or_wrong_is_named_at_once(org: Organization) -> None:
    request = rpc.QueryAvailabilityRequest(
        organization_id=org.id, duration=minutes(0), opening_hours=["always"]
    )
    with pytest.raises(grpc.RpcError) as raised:
        org.stub.QueryAvailability(request, timeout=TIMEOUT)
    assert refusal(raised.value).fields.keys() == {
        "from",
        "to",
        "resource_id",
        "duration",
        "opening_hours[0]",
        "time_zone",
    }


def test_the_epoch_is_a_time_like_others(org: Organization) -> None:
    """Its Timestamp has no content, but is there."""
    request = rpc.QueryAvailabilityRequest(
        organization_id=org.id, to=Timestamp(seconds=60, nanos=1000), resource_id=[""]
    )
    getattr(request, "from").SetInParent()
    [free] = org.stub.QueryAvailability(request, timeout=TIMEOUT).resources[0].free
    assert free.HasField("start")
    assert (free.start, free.end) == (Timestamp(), Timestamp(seconds=60, nanos=1000))


def test_a_repeated_query_sees_every_change(org: Organization) -> None:
    for number in range(3):
        assert query(org, 0, 60) == query(org, 0, 60)
        assert len(query(org, 0, 60).resources[0].busy) == number
        org.upsert(f"a{number}", number * 10, number * 10 + 5)


async def test_a_response_that_would_be_too_large_is_refused(
    org: Organization, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        org.upsert(f"a{number}", number * 10, number * 10 + 5)
    size = query(org, 0, 100).ByteSize()
    request = request_of(org, 0, 100)
    async with database_of(Database, database_url, Metrics(), max_waiting=10) as database:

        async def answer() -> Any:
            reader = AvailabilityReader(
                ReadStore(database, None),
                Moments(database),
                Helper(AVAILABILITY_HELPER),
            )
            return await reader.answer(request, Call(read_context((), None)))

        monkeypatch.setattr(availability, "MAX_RESPONSE_BYTES", size)
        assert len((await answer()).content) == size
        monkeypatch.setattr(availability, "MAX_RESPONSE_BYTES", size - 1)
        with pytest.raises(InvalidFields) as raised:
            await answer()
    assert raised.value.violations == [("to", availability.TOO_LARGE)]
    assert raised.value.organization_revision == 10


def test_opening_hours_that_open_too_often_are_refused(org: Organization) -> None:
    often = ["Mo-Su " + ",".join(f"{hour:02}:00-{hour:02}:30" for hour in range(16))]
    year, ids = 366 * DAY, [str(number) for number in range(100)]
    error = refused(org, 0, year, *ids, opening_hours=often, time_zone="UTC")
    assert set(error.fields) == {"opening_hours"}
    assert len(query(org, 0, year, opening_hours=often, time_zone="UTC").resources[0].free) == 5856


async def test_equal_queries_at_the_same_time_are_computed_once(
    org: Organization, database_url: str
) -> None:
    class CountedReads(ReadStore):
        count = 0

        async def occupied_of_several(
            self, organization_id: str, wanted: Sequence[Wanted]
        ) -> Sequence[Page[Occupied]]:
            self.count += len(wanted)
            return await super().occupied_of_several(organization_id, wanted)

    async with database_of(Database, database_url, Metrics(), max_waiting=10) as database:
        reads = CountedReads(database, None)
        moments = Moments(database)
        reader = AvailabilityReader(reads, moments, Helper(AVAILABILITY_HELPER))

        async def answer(end: float) -> Any:
            return await reader.answer(request_of(org, 0, end), Call(read_context((), None)))

        for computed in (1, 2):
            org.upsert(f"a{computed}", computed, computed + 1)
            answers = await asyncio.gather(*(answer(60) for _ in range(5)))
            assert len({each.content for each in answers}) == 1
            assert answers[0].content == query(org, 0, 60).SerializeToString()
            assert reads.count == computed
        await asyncio.gather(answer(61), answer(62))
        assert reads.count == 4


@pytest.mark.parametrize(
    ("days", "min_revision", "at_a_time"),
    [
        (availability.LARGE_DAYS // 100 + 1, 0, 1),
        (availability.SHORT_DAYS // 100 + 1, 0, availability.MAX_CONCURRENT_READS),
        (availability.SHORT_DAYS // 100, None, 1),
    ],
)
async def test_a_query_that_is_cancelled_keeps_its_turn_until_its_statement_ends(
    create_database: CreateDatabase,
    org: Organization,
    days: int,
    min_revision: int | None,
    at_a_time: int,
) -> None:
    url = create_database()
    database = database_of(Database, url, Metrics(), connections=5, max_waiting=10)
    resource_ids = [str(number) for number in range(100)]
    async with database, await psycopg.AsyncConnection.connect(url, autocommit=True) as other:

        async def running() -> int:
            found = await other.execute(
                "SELECT count(*) FROM pg_locks"
                " WHERE relation = 'appointments'::regclass AND NOT granted"
            )
            [(number,)] = await found.fetchall()
            return int(number)

        reader = AvailabilityReader(
            ReadStore(database, None),
            Moments(database),
            Helper(AVAILABILITY_HELPER),
        )

        async def answer(number: int) -> Any:
            request = request_of(org, number, number + DAY * days, *resource_ids)
            if min_revision is not None:
                request.min_revision = min_revision
            return await reader.answer(request, Call(read_context((), None)))

        async with await psycopg.AsyncConnection.connect(url) as locking:
            await locking.execute("LOCK TABLE appointments")
            first = [asyncio.create_task(answer(number)) for number in range(at_a_time)]
            async with asyncio.timeout(10):
                while await running() < at_a_time:
                    pass
            for task in first:
                task.cancel()
            await asyncio.wait(first)
            last = asyncio.create_task(answer(at_a_time))
            for _ in range(50):
                await database.fetch_across("SELECT 1")
                assert await running() == at_a_time
        assert len((await last).content) > 0
        assert all(task.cancelled() for task in first)
