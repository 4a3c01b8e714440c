"""Changes of one resource, or of some kinds: as pages and as they happen."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain import Change, ChangeFilter
from service.metrics import Metrics
from service.reads.entries import FILTERED_CHANGES
from service.reads.store import ReadStore
from service.reads.watch import Watch
from tests.api import Organization, refusal, refused, soon
from tests.databases import database_of
from tests.observing import until
from tests.reads.test_watch import CountingDatabase, Watcher

Kind = pb.HistoryEntry.Change
MANY = FILTERED_CHANGES + 5_000


def revisions(org: Organization, **filters: Any) -> list[int]:
    return [entry.revision for entry in org.changes(**filters)]


def insert_history(url: str, org: Organization, count: int) -> None:
    """Store changes of the resource `many`, and one of the resource `rare` after them."""
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(
            "INSERT INTO appointment_history (organization_id, revision, change, recorded_at,"
            " actor, appointment_id, resource_id, start_time, end_time, title, attributes,"
            " created_at, updated_at, state, version)"
            " SELECT %s, n, 'CREATED', now(), '', 'a' || n, CASE WHEN n > %s THEN 'rare' ELSE"
            " 'many' END, now(), now() + interval '1 minute', '', '{}', now(), now(), 'CANCELLED',"
            " 1 FROM generate_series(1, %s) AS n",
            (org.id, count, count + 1),
        )
        database.execute("INSERT INTO organizations VALUES (%s, %s, now())", (org.id, count + 1))


def test_a_move_is_a_change_of_both_resources(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna")
    org.upsert("b", 0, 30, resource_id="bob")
    org.upsert("a", 30, 60, resource_id="bob")
    org.upsert("a", 60, 90, resource_id="bob")
    org.upsert("c", 0, 30, resource_id="anna")
    assert revisions(org, resource_id="anna") == [1, 3, 5]
    assert revisions(org, resource_id="bob") == [2, 3, 4]
    [moved] = [entry for entry in org.changes(resource_id="anna") if entry.revision == 3]
    assert (moved.change, moved.appointment.resource_id) == (Kind.UPDATED, "bob")


def test_additional_resources_count(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna", additional_resource_ids=["room", "laser"])
    org.update("a", {"additional_resource_ids": ["laser"]}, ["additional_resource_ids"])
    org.update("a", {"title": "without the room"})
    org.upsert("a", 0, 30, resource_id="laser")
    org.cancel("a")
    assert revisions(org, resource_id="room") == [1, 2]
    assert revisions(org, resource_id="laser") == [1, 2, 3, 4, 5]
    assert revisions(org, resource_id="anna") == [1, 2, 3, 4]


def test_the_resource_without_a_name_is_one_too(org: Organization) -> None:
    org.upsert("a", 0, 30)
    org.upsert("b", 0, 30, resource_id="anna")
    assert revisions(org, resource_id="") == [1]
    assert revisions(org) == [1, 2]


def test_what_is_cancelled_and_comes_back_elsewhere_leaves_its_resource(org: Organization) -> None:
    org.upsert("a", 0, 30, resource_id="anna")
    org.cancel("a")
    org.upsert("a", 0, 30, resource_id="bob")
    assert revisions(org, resource_id="anna") == [1, 2, 3]


def held_confirmed_and_expired(org: Organization) -> None:
    org.upsert("b", 30, 60, resource_id="anna", hold_until=soon(60))
    org.confirm("b")
    org.upsert("a", 0, 30, resource_id="anna", hold_until=soon(1.5))
    until(lambda: org.get("a").state == pb.Appointment.EXPIRED)
    org.upsert("c", 0, 30, resource_id="anna")
    org.upsert("d", 0, 30, resource_id="bob")


def test_kinds_of_changes_are_selected(org: Organization) -> None:
    held_confirmed_and_expired(org)
    kinds = [entry.change for entry in org.changes(resource_id="anna")]
    assert kinds == [Kind.CREATED, Kind.CONFIRMED, Kind.CREATED, Kind.EXPIRED, Kind.CREATED]
    assert revisions(org, changes=[Kind.EXPIRED, Kind.CONFIRMED]) == [2, 4]
    assert revisions(org, resource_id="anna", changes=[Kind.CREATED]) == [1, 3, 5]
    assert revisions(org, resource_id="bob", changes=[Kind.EXPIRED]) == []


def test_confirmations_and_expiries_reach_a_watcher(org: Organization) -> None:
    kinds = [Kind.CONFIRMED, Kind.EXPIRED]
    with Watcher(org.stub, org.id, resource_id="anna", changes=kinds) as watcher:
        assert watcher.message() == rpc.WatchAppointmentsResponse()
        held_confirmed_and_expired(org)
        found = watcher.entries_up_to(4)
        assert [(entry.change, entry.appointment.id) for entry in found] == [
            (Kind.CONFIRMED, "b"),
            (Kind.EXPIRED, "a"),
        ]


def test_a_redaction_reaches_everyone_who_could_have_seen_the_appointment(
    org: Organization,
) -> None:
    org.upsert("a", 0, 30, resource_id="anna", title="t")
    org.upsert("a", 0, 30, resource_id="bob", additional_resource_ids=["carl"], title="t")
    org.upsert("b", 0, 30, resource_id="eve", title="t")
    org.upsert("a", 0, 30, resource_id="dora", title="t")
    with Watcher(org.stub, org.id, resource_id="anna", changes=[Kind.CANCELLED]) as watcher:
        watcher.message()
        org.redact("a")
        [found] = watcher.entries_up_to(5)
        assert (found.change, found.appointment.resource_id) == (Kind.REDACTED, "dora")
    for resource in ("anna", "bob", "carl", "dora"):
        assert revisions(org, resource_id=resource, changes=[Kind.EXPIRED]) == [5]
    assert revisions(org, resource_id="eve") == [3]
    assert revisions(org, changes=[Kind.REDACTED]) == [5]
    assert revisions(org, changes=[Kind.CREATED]) == [1, 3, 5]


def test_a_move_reaches_the_watchers_of_both_resources(org: Organization) -> None:
    with (
        Watcher(org.stub, org.id, resource_id="anna") as of_anna,
        Watcher(org.stub, org.id, resource_id="bob") as of_bob,
    ):
        assert not of_anna.message().entries
        assert not of_bob.message().entries
        org.upsert("a", 0, 30, resource_id="anna")
        org.upsert("b", 0, 30, resource_id="bob")
        org.upsert("a", 30, 60, resource_id="bob")
        assert [entry.revision for entry in of_anna.entries_up_to(3)] == [1, 3]
        assert [entry.revision for entry in of_bob.entries_up_to(3)] == [2, 3]


@pytest.mark.parametrize("call", ["ListChanges", "WatchAppointments"])
def test_filters_that_break_rules_are_named(org: Organization, call: str) -> None:
    request: Any = {
        "ListChanges": rpc.ListChangesRequest,
        "WatchAppointments": rpc.WatchAppointmentsRequest,
    }[call]

    def send(**fields: Any) -> object:
        sent: Any = getattr(org.stub, call)(request(organization_id=org.id, **fields), timeout=10)
        return next(sent) if call == "WatchAppointments" else sent

    wrong = refused(send, resource_id="x" * 257, changes=[Kind.CREATED, 0, 99])
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert wrong.fields.keys() == {"resource_id", "changes[1]", "changes[2]"}
    assert "EXPIRED" in wrong.fields["changes[1]"]


def test_a_page_token_belongs_to_its_filters(org: Organization) -> None:
    for n in range(3):
        org.upsert(f"{n}", n, n + 1, resource_id="anna")

    def page(**fields: Any) -> rpc.ListChangesResponse:
        return org.stub.ListChanges(
            rpc.ListChangesRequest(organization_id=org.id, page_size=1, **fields)
        )

    filters = {"resource_id": "anna", "changes": [Kind.CREATED, Kind.UPDATED]}
    token = page(**filters).next_page_token
    [second] = page(page_token=token, **filters).entries
    assert second.revision == 2
    # The same filter in other words.
    same = [Kind.UPDATED, Kind.CREATED, Kind.UPDATED]
    assert page(page_token=token, resource_id="anna", changes=same).entries == [second]
    for other in ({}, {**filters, "resource_id": ""}, {**filters, "changes": [Kind.CREATED]}):
        assert refused(page, page_token=token, **other).fields.keys() == {"page_token"}


@pytest.fixture
def long(org: Organization, database_url: str) -> Organization:
    """An organization with many changes of one resource, then one of another."""
    insert_history(database_url, org, MANY)
    return org


def test_a_page_looks_at_a_limited_number_of_changes(long: Organization) -> None:
    def page(**fields: Any) -> rpc.ListChangesResponse:
        return long.stub.ListChanges(
            rpc.ListChangesRequest(organization_id=long.id, resource_id="rare", **fields)
        )

    first = page()
    assert (list(first.entries), first.revision) == ([], MANY + 1)
    last = page(page_token=first.next_page_token)
    assert [entry.revision for entry in last.entries] == [MANY + 1]
    assert last.next_page_token == ""
    assert page(after_revision=MANY + 1) == rpc.ListChangesResponse(revision=MANY + 1)
    assert page(after_revision=2**63 - 1) == rpc.ListChangesResponse(revision=MANY + 1)
    assert revisions(long, resource_id="none") == []


def test_a_watcher_that_is_far_behind_gets_there(long: Organization) -> None:
    with Watcher(long.stub, long.id, resource_id="rare") as watcher:
        # It is told at once how far the first read came.
        assert watcher.message() == rpc.WatchAppointmentsResponse(revision=FILTERED_CHANGES)
        message = watcher.message()
        assert [entry.revision for entry in message.entries] == [MANY + 1]
        assert message.revision == MANY + 1
        long.upsert("live", 0, 1, resource_id="rare")
        assert [entry.revision for entry in watcher.message().entries] == [MANY + 2]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[CountingDatabase]:
    database = database_of(
        CountingDatabase, database_url, Metrics(), connections=2, max_waiting=200
    )
    database.asked = []
    async with database:
        yield database


def watch_of(database: CountingDatabase, **options: Any) -> Watch:
    return Watch(
        database,
        ReadStore(database, None),
        Metrics(),
        interval=0.01,
        outage_timeout=5,
        max_watchers=100,
        **options,
    )


def of_resource(name: str) -> ChangeFilter:
    return ChangeFilter(resource_id=name)


async def test_a_change_is_read_once_for_all_filters(
    database: CountingDatabase, org: Organization
) -> None:
    watch = watch_of(database)
    watchers = [watch.changes(org.id, of_resource(f"{n}"), after=0) for n in range(20)]
    for watcher in watchers:
        await anext(watcher)
    database.asked.clear()
    news = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
    for n in range(20):
        await asyncio.to_thread(org.upsert, f"{n}", n, n + 1, resource_id=f"{n}")
    for n, found in enumerate(news):
        assert [entry.revision for entry in (await found).response.entries] == [n + 1]
    reads = [asked for asked in database.asked if not isinstance(asked, tuple)]
    after = [asked["after"] for asked in reads]
    assert len(after) == len(set(after)), "nothing was read twice"
    for watcher in watchers:
        await watcher.aclose()


async def test_progress_is_sent_while_nothing_is_selected(
    database: CountingDatabase, org: Organization
) -> None:
    watch = watch_of(database, progress_interval=0.05)
    watcher = watch.changes(org.id, of_resource("other"), after=0)
    assert (await anext(watcher)).response == rpc.WatchAppointmentsResponse()
    for n in range(3):
        await asyncio.to_thread(org.upsert, f"{n}", n, n + 1)
    seen = 0
    while seen < 3:
        message = (await asyncio.wait_for(anext(watcher), 10)).response
        assert not message.entries
        assert message.revision > seen
        seen = message.revision
    # Nothing more is told while nothing changes.
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watcher), 0.3)


async def test_catching_up_skips_what_the_filter_leaves_out(
    database: CountingDatabase, long: Organization
) -> None:
    watch = watch_of(database)
    behind = watch.changes(long.id, of_resource("rare"), after=0)
    await anext(behind)
    database.asked.clear()
    message = (await anext(behind)).response
    assert [entry.revision for entry in message.entries] == [MANY + 1]
    reads = [asked for asked in database.asked if not isinstance(asked, tuple)]
    assert [asked["after"] for asked in reads] == [FILTERED_CHANGES]
    await behind.aclose()


# Histories at random

RESOURCES = st.sampled_from(["", "r", "s", "t"])
OPERATIONS = st.tuples(
    st.sampled_from(["upsert", "upsert", "upsert", "hold", "confirm", "cancel", "redact"]),
    st.sampled_from(["a", "b", "c"]),
    st.lists(RESOURCES, min_size=1, max_size=3, unique=True),
    st.integers(min_value=0, max_value=3),
)
REFUSED = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}
FILTERS = st.fixed_dictionaries(
    {"changes": st.lists(st.sampled_from([Kind.Value(change) for change in Change]), max_size=2)},
    optional={"resource_id": RESOURCES},
)


def apply(org: Organization, kind: str, id: str, resources: list[str], minute: int) -> None:
    named, *more = resources
    if "" in more:
        named, more = "", [resource for resource in resources if resource]
    fields: dict[str, Any] = {
        "resource_id": named,
        "additional_resource_ids": more,
        "title": "t",
    }
    try:
        match kind:
            case "upsert":
                org.upsert(id, minute, minute + 2, **fields)
            case "hold":
                org.upsert(
                    id, minute, minute + 2, hold_until=soon(60 if minute % 2 else 0.005), **fields
                )
            case "confirm":
                org.confirm(id)
            case "cancel":
                org.cancel(id)
            case "redact":
                org.redact(id)
    except grpc.RpcError as error:
        assert refusal(error).code in REFUSED  # and there is no change


def resources_of(entry: pb.HistoryEntry | None) -> set[str]:
    if entry is None:
        return set()
    return {entry.appointment.resource_id, *entry.appointment.additional_resource_ids}


def expected(
    entries: list[pb.HistoryEntry], changes: list[Kind.ValueType], resource_id: str | None = None
) -> Iterator[int]:
    """Filter the whole replay: what a resource had before or has after a change.

    A redaction is for all who could have seen the appointment.
    """
    last: dict[str, pb.HistoryEntry] = {}
    ever: defaultdict[str, set[str]] = defaultdict(set)
    for entry in entries:
        id, redacted = entry.appointment.id, entry.change == Kind.REDACTED
        before = ever[id] if redacted else resources_of(last.get(id))
        if (not changes or redacted or entry.change in changes) and (
            resource_id is None or resource_id in before | resources_of(entry)
        ):
            yield entry.revision
        last[id] = entry
        ever[id] |= resources_of(entry)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    operations=st.lists(OPERATIONS, min_size=4, max_size=25),
    filters=FILTERS,
    page_size=st.integers(min_value=1, max_value=4),
    after=st.integers(min_value=0, max_value=50),
)
def test_a_replay_with_a_filter_is_the_filtered_replay(
    stub: AppointmentServiceStub,
    operations: list[tuple[str, str, list[str], int]],
    filters: dict[str, Any],
    page_size: int,
    after: int,
) -> None:
    org = Organization(stub, f"filtered-{uuid.uuid4()}")
    half = len(operations) // 2
    for operation in operations[:half]:
        apply(org, *operation)
    watched: list[int] = []
    with Watcher(stub, org.id, **filters) as watcher:
        first = watcher.message()
        watched += [entry.revision for entry in first.entries]
        for operation in operations[half:]:
            apply(org, *operation)
        entries = org.changes()
        wanted = list(expected(entries, **filters))

        def replayed(**options: int) -> list[int]:
            # A worker may record that a hold has expired in the meantime.
            found = revisions(org, **options, **filters)
            return [revision for revision in found if revision <= len(entries)]

        assert replayed(page_size=page_size) == wanted
        after = min(after, len(entries))
        later = [revision for revision in wanted if revision > after]
        assert replayed(after_revision=after) == later
        while watched[: len(wanted)] != wanted:
            watched += [entry.revision for entry in watcher.message().entries]
            assert watched[: len(wanted)] == wanted[: len(watched)]
