"""Lists by revision: compared with a naive evaluation, and as callers see them."""

from datetime import UTC, datetime
from random import Random
from typing import Any

import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc

from service.domain import ALL_CHANGES, Appointment
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads import by_revision
from service.reads.store import ReadStore
from tests.api import Organization, at, refused
from tests.conftest import CreateDatabase
from tests.databases import database_of
from tests.reads.test_past import IDS, naive, random_window, write

LISTS = 100


@pytest.mark.parametrize("seed", range(6))
async def test_every_list_by_revision_is_what_the_history_says(
    create_database: CreateDatabase, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = Random(seed)
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        for organization in ("other", "organization"):
            write(connection, organization, random)
        # Holds have ended in the present too.
        connection.execute(
            "UPDATE appointments a SET hold_until = h.hold_until FROM appointment_history h"
            " WHERE (h.organization_id, h.revision) = (a.organization_id, a.revision)"
            " AND a.hold_until IS NOT NULL"
        )
    async with database_of(Database, url, Metrics()) as database:
        reads = ReadStore(database, None)
        history = await reads.changes(
            "organization", ALL_CHANGES, after=0, limit=1000, min_revision=None
        )
        changes = [entry.appointment for entry in history.items]
        for _ in range(LISTS):
            # Less than the appointments, as many as some have, and more than the changes.
            monkeypatch.setattr(by_revision, "LOOKED_AT", random.choice([1, 4, len(IDS) + 1, 1000]))
            window = random_window(random)
            as_of = random.choice([None, random.randint(0, len(changes))])
            latest = len(changes) if as_of is None else as_of
            found = naive(changes, window, latest, datetime.now(UTC))
            expected = sorted(found, key=lambda state: state.revision)
            limit = random.choice([1, 2, 5, 100])
            assert await _pages(reads, window, as_of, limit) == expected, (window, as_of, limit)


async def _pages(reads: ReadStore, window: Any, as_of: int | None, limit: int) -> list[Appointment]:
    found: list[Appointment] = []
    after, more = 0, True
    while more:
        page = await reads.list_by_revision(
            "organization",
            window,
            after=after,
            limit=limit,
            as_of=as_of,
            at=None,
            min_revision=None,
        )
        assert len(page.items) <= limit
        assert all(after < item.revision <= page.reached for item in page.items)
        found += [each.appointment for each in page.items]
        more = page.reached < page.last
        assert not more or page.reached > after
        after = page.reached
    return found


@pytest.fixture
def day(org: Organization) -> Organization:
    """Changes in another order than that of the starts."""
    org.upsert("a", 90, 120, resource_id="room 1")
    org.upsert("b", 60, 90, resource_id="room 2", additional_resource_ids=["room 1"])
    org.upsert("c", 30, 60, resource_id="room 1")
    org.upsert("d", 0, 30, resource_id="room 2")
    org.upsert("b", 60, 90, resource_id="room 2", additional_resource_ids=["room 1"], title="new")
    org.cancel("c")
    return org


def ids(page: rpc.ListAppointmentsResponse) -> list[str]:
    return [item.id for item in page.appointments]


def by(order: str, **filters: Any) -> dict[str, Any]:
    return {"order_by": order, **filters}


def test_a_list_is_by_start_or_by_the_latest_change(day: Organization) -> None:
    for _ in range(2):  # and from memory
        assert ids(day.list_page()) == ids(day.list_page(order_by="start")) == ["d", "b", "a"]
        assert ids(day.list_page(order_by="revision")) == ["a", "d", "b"]
    filters = by("revision", include_cancelled=True)
    assert ids(day.list_page(**filters)) == ["a", "d", "b", "c"]
    assert ids(day.list_page(resource_id="room 1", **filters)) == ["a", "b", "c"]
    assert ids(day.list_page(to=at(90), **filters)) == ["d", "b", "c"]
    assert ids(day.list_page(as_of_revision=4, **filters)) == ["a", "b", "c", "d"]
    assert ids(day.list_page(as_of_time=at(0), **filters)) == ["a", "d", "b", "c"]
    assert ids(day.list_page(min_revision=6, **filters)) == ["a", "d", "b", "c"]


@pytest.mark.parametrize("past", [{}, {"as_of_revision": 6}])
def test_pages_follow_each_other(day: Organization, past: dict[str, int]) -> None:
    for size in (1, 2, 3):
        found = day.listed(order_by="revision", page_size=size, **past)
        assert list(found) == ["a", "d", "b", "c"]


def test_what_changes_between_pages_comes_again(day: Organization) -> None:
    page = day.list_page(order_by="revision", page_size=1)
    assert ids(page) == ["a"]
    day.upsert("a", 90, 120, resource_id="room 1", title="new")
    rest = day.list_page(order_by="revision", page_token=page.next_page_token)
    assert ids(rest) == ["d", "b", "a"]
    assert rest.revision == 7


def test_a_page_token_and_an_etag_are_for_one_order(day: Organization) -> None:
    by_start, by_revision = (day.list_page(page_size=1, order_by=o) for o in ("start", "revision"))
    assert ids(day.list_page(page_token=by_start.next_page_token)) == ["b", "a"]
    for order, other in (("revision", by_start), ("start", by_revision), ("", by_revision)):
        found = refused(day.list_page, order_by=order, page_token=other.next_page_token)
        assert set(found.fields) == {"page_token"}
    absent = day.list_page(page_size=1, if_none_match=by_start.etag)
    assert absent.not_modified
    again = day.list_page(page_size=1, if_none_match=by_start.etag, order_by="revision")
    assert ids(again) == ["a"]
    again = day.list_page(page_size=1, if_none_match=by_revision.etag, order_by="revision")
    assert again.not_modified


@pytest.mark.parametrize("order", ["title", "revision desc", "START", "start,revision"])
def test_another_order_is_refused(org: Organization, order: str) -> None:
    found = refused(org.list_page, order_by=order)
    assert found.reason == "INVALID_FIELD"
    assert found.fields == {"order_by": "must be start or revision"}


def test_an_empty_etag_is_not_that_of_a_list_as_of_a_time(day: Organization) -> None:
    page = day.list_page(as_of_time=at(0))
    assert page.etag == ""
    assert day.list_page(as_of_time=at(0), if_none_match=f"{page.etag},abc, ") == page
