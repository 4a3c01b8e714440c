"""Reads from replicas: standbys that lag, do not replay, hang, or have ended."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from psycopg.conninfo import make_conninfo

from local.postgres import EmbeddedPostgres
from local.programs import Program, StartError
from local.stack import DATABASE
from service.reads.replicas import PROBE_INTERVAL, by_host
from tests.api import Organization, refusal
from tests.availability.asking import Span, query, spans
from tests.conftest import OwnPostgres, StartProgram, listening, postgres_starts
from tests.databases import Clusters, temporary_data_directory
from tests.observing import PATIENT, until
from tests.reads.replicas import Readers, Replicated, Standby
from tests.reads.test_watch import Watcher
from tests.rest_client import Client

StartReplicated = Callable[..., Replicated]


@pytest.fixture
def start_replicated(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> Iterator[StartReplicated]:
    """Start a primary, standbys and a service, whose organization has "a", titled "old".

    `start_replicated(2, REPLICA_TIMEOUT="60")` has two standbys and a patient service.
    """
    with ExitStack() as stack:

        def start(count: int = 1, **settings: str) -> Replicated:
            primary = own_postgres()
            standbys = [_standby(stack, primary) for _ in range(count)]
            service = start_service(**_settings(primary, standbys), **settings)
            return _with_old(stack, service, standbys, organization)

        yield start


@pytest.fixture(scope="module")
def pair(clusters: Clusters, fork: StartProgram) -> Iterator[tuple[Program, Standby]]:
    """A service with a standby that tests may pause."""
    with ExitStack() as stack:
        primary = stack.enter_context(postgres_starts(clusters))()
        standby = _standby(stack, primary)
        yield listening(stack, fork("service", _settings(primary, [standby]))), standby


@pytest.fixture
def lagging(pair: tuple[Program, Standby], organization: str) -> Iterator[Replicated]:
    """One standby that has replayed "a" with the title "old", but not "new" and "b"."""
    service, standby = pair
    with ExitStack() as stack:
        replicated = _with_old(stack, service, [standby], organization)
        _fall_behind(replicated)
        stack.callback(standby.catch_up)
        stack.callback(standby.resume)
        yield replicated


def _standby(stack: ExitStack, primary: EmbeddedPostgres) -> Standby:
    directory = stack.enter_context(temporary_data_directory())
    server = primary.standby(directory / "standby", max_standby_streaming_delay="0")
    stack.callback(server.stop, immediate=True)
    server.start()
    return Standby(server, primary)


def _settings(primary: EmbeddedPostgres, standbys: list[Standby]) -> dict[str, str]:
    url = primary.url(DATABASE)
    read_url = make_conninfo(url, host=",".join(standby.host for standby in standbys))
    return {"DATABASE_URL": url, "DATABASE_READ_URL": read_url}


def _with_old(
    stack: ExitStack, service: Program, standbys: list[Standby], organization: str
) -> Replicated:
    """An organization that has "a", titled "old", on all servers; every standby responds."""
    channel = stack.enter_context(grpc.insecure_channel(service.address))
    org = Organization(AppointmentServiceStub(channel), organization)
    org.upsert("a", 0, 1, title="old")
    replicated = Replicated(service, org, standbys)
    for standby in standbys:
        standby.catch_up()
        replicated.until_asked(standby)
    return replicated


def _fall_behind(replicated: Replicated) -> None:
    replicated.standbys[0].pause()
    replicated.org.upsert("a", 0, 1, title="new")
    replicated.org.upsert("b", 1, 2, title="b")


def changes(org: Organization, **options: Any) -> rpc.ListChangesResponse:
    return org.stub.ListChanges(rpc.ListChangesRequest(organization_id=org.id, **options))


def test_a_stream_sends_nothing_that_the_primary_does_not_show(
    start_replicated: StartReplicated,
) -> None:
    """A replica has a commit before the synchronous standby has confirmed it."""
    replicated = start_replicated(1, STATEMENT_TIMEOUT="60", CONNECTION_TIMEOUT="60")
    [standby], org = replicated.standbys, replicated.org
    for minute in range(1, 20):
        org.upsert(str(minute), minute, minute + 1)
    with unconfirmed_commit(standby, org) as confirm:
        before = len(org.changes())
        answered = replicated.count("answered")
        # Its first message comes from the primary, the others from the standby.
        with Watcher(org.stub, org.id) as watcher:
            assert len(watcher.entries_up_to(before)) == before
            assert replicated.count("answered") > answered
            assert confirm() == before + 1
            assert [entry.revision for entry in watcher.message().entries] == [before + 1]


def test_a_revision_that_only_a_standby_shows_does_not_count_as_one_that_does_not_exist(
    start_replicated: StartReplicated, start_service: StartProgram
) -> None:
    """Its reader may be answered by the primary, by another service for example."""
    replicated = start_replicated(1, STATEMENT_TIMEOUT="60", CONNECTION_TIMEOUT="60")
    [standby], org = replicated.standbys, replicated.org
    primary = start_service(DATABASE_URL=standby.primary.url(DATABASE))
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(primary.address))
        other = Organization(AppointmentServiceStub(channel), org.id)
        with unconfirmed_commit(standby, org) as confirm:
            latest = len(other.changes()) + 1
            assert org.list_page(min_revision=latest - 1).revision == latest, "the standby's"
            for read in (
                lambda: other.list_page(min_revision=latest),
                lambda: other.get("a", as_of_revision=latest),
                lambda: changes(other, after_revision=latest),
                lambda: query(other, 0, 60, min_revision=latest),
                lambda: Watcher(other.stub, other.id, after=latest).message(),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    read()
                found = refusal(caught.value)
                assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "LOCK_TIMEOUT")
                assert found.retry_after is not None
            # The wait ends as soon as it is confirmed.
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(other.list_page, min_revision=latest)
                confirm()
                assert waiting.result().revision == latest
        with pytest.raises(grpc.RpcError) as caught:
            other.list_page(min_revision=latest + 1)
        assert refusal(caught.value).fields.keys() == {"min_revision"}
        assert refusal(caught.value).organization_revision == latest


@contextmanager
def unconfirmed_commit(standby: Standby, org: Organization) -> Iterator[Callable[[], int]]:
    """Let the standby show a commit that the primary does not show.

    Yields a function that lets the primary show it too, and returns its revision.
    """

    def confirm() -> int:
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")
        return waiting.result()

    url = standby.primary.url()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(url, autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        last = threading.Event()
        waiting = pool.submit(_upsert_until, last, org)
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: admin.execute(waits).fetchone() is not None)
        last.set()
        standby.catch_up()
        latest = "SELECT revision FROM organizations WHERE organization_id = %s"
        assert standby.ask(latest, org.id) == len(org.changes()) + 1
        try:
            yield confirm
        finally:
            confirm()


def _upsert_until(last: threading.Event, org: Organization) -> int:
    """Write until the last write, and return its revision.

    Sessions apply a setting with a delay, so that the first writes do not wait.
    """
    for minute in count(100):
        revision = org.upsert(str(minute), minute, minute + 1).appointment.revision
        if last.is_set():
            return revision
    raise AssertionError


def test_a_fresh_read_never_comes_from_a_replica(lagging: Replicated) -> None:
    asked = lagging.count("answered") + lagging.count("behind")
    for _ in range(5):
        assert lagging.titles() == ["new", "b"]
        assert lagging.org.get("a").title == "new"
        assert len(lagging.org.history("a").entries) == 2
        assert changes(lagging.org).revision == 3
    assert lagging.count("answered") + lagging.count("behind") == asked


def test_a_read_that_allows_its_revision_comes_from_it(lagging: Replicated) -> None:
    org = lagging.org
    before = lagging.count("answered")
    assert lagging.titles(min_revision=0) == ["old"]
    assert lagging.titles(min_revision=1) == ["old"]
    assert org.get("a", min_revision=1).title == "old"
    assert [item.appointment.title for item in org.history("a", min_revision=1).entries] == ["old"]
    found = changes(org, min_revision=1)
    assert (found.revision, len(found.entries)) == (1, 1)
    with pytest.raises(grpc.RpcError) as caught:
        org.get("b", min_revision=1)
    assert refusal(caught.value).reason == "APPOINTMENT_NOT_FOUND"
    assert refusal(caught.value).organization_revision == 1
    assert lagging.count("answered") == before + 6


def test_a_read_that_needs_more_comes_from_the_primary(lagging: Replicated) -> None:
    org = lagging.org
    before = lagging.count("behind")
    assert lagging.titles(min_revision=2) == ["new", "b"]
    assert org.get("b", min_revision=3).title == "b"
    assert len(org.history("a", min_revision=2).entries) == 2
    assert changes(org, min_revision=2).revision == 3
    assert changes(org, min_revision=0, after_revision=2).revision == 3
    assert lagging.titles(min_revision=0, as_of_revision=2) == ["new"]
    assert org.get("a", min_revision=0, as_of_revision=2).title == "new"
    assert lagging.count("behind") == before + 7
    answered = lagging.count("answered")
    assert lagging.titles(min_revision=0, as_of_revision=1) == ["old"]
    assert org.get("a", min_revision=0, as_of_revision=1).title == "old"
    assert lagging.count("answered") == answered + 2
    lagging.standbys[0].resume()
    lagging.standbys[0].catch_up()
    assert lagging.titles(min_revision=3) == ["new", "b"]
    assert lagging.count("answered") == answered + 3


def test_availability_comes_from_it_too(lagging: Replicated) -> None:
    def busy(**options: int) -> tuple[int, list[Span]]:
        found = query(lagging.org, 0, 10, **options)
        return found.revision, spans(found.resources[0].busy)

    assert busy() == (3, [(0, 2)])
    assert busy(min_revision=1) == (1, [(0, 1)])
    assert busy(min_revision=2) == (3, [(0, 2)])
    assert busy() == (3, [(0, 2)])


def test_an_etag_is_compared_where_the_page_may_come_from(lagging: Replicated) -> None:
    org = lagging.org
    old, new = (org.list_page(**options).etag for options in ({"min_revision": 0}, {}))
    before = lagging.count("answered")
    unchanged = org.list_page(min_revision=1, if_none_match=old)
    assert unchanged == rpc.ListAppointmentsResponse(etag=old, not_modified=True)
    assert lagging.count("answered") == before + 1  # one look
    # Only fresh reads, and those that need more, see what has changed since.
    for options in ({}, {"min_revision": 2}):
        fresh = org.list_page(if_none_match=old, **options)
        assert (len(fresh.appointments), fresh.etag) == (2, new)
        assert org.list_page(if_none_match=f"{old},{new}", **options).not_modified
    behind = org.list_page(min_revision=0, if_none_match=new)
    assert [item.title for item in behind.appointments] == ["old"]
    assert behind.etag == old


def test_a_revision_that_nobody_has_is_refused(lagging: Replicated) -> None:
    for field in ("min_revision", "as_of_revision"):
        with pytest.raises(grpc.RpcError) as caught:
            lagging.org.list_page(**{"min_revision": 0, field: 4})
        assert set(refusal(caught.value).fields) == {field}
        assert refusal(caught.value).organization_revision == 3
    with pytest.raises(grpc.RpcError) as caught:
        changes(lagging.org, min_revision=4)
    assert set(refusal(caught.value).fields) == {"min_revision"}


def test_a_list_from_memory_and_one_from_a_replica_are_not_mixed_up(lagging: Replicated) -> None:
    for _ in range(3):
        assert lagging.titles() == ["new", "b"]
        assert lagging.titles(min_revision=0) == ["old"]
        assert lagging.titles(min_revision=3) == ["new", "b"]
    [standby] = lagging.standbys
    standby.resume()
    standby.catch_up()
    before = lagging.count("answered")
    for _ in range(3):
        assert lagging.titles(min_revision=0) == ["new", "b"]
    assert lagging.count("answered") == before + 3, "the primary is not asked what has changed"


def test_through_rest(lagging: Replicated, start_gateway: StartProgram) -> None:
    rest = Client(start_gateway(SERVICE_ADDRESS=lagging.service.address), lagging.org.id)

    def titles(**options: int) -> list[str]:
        found = rest.call("GET", "/appointments", **options).json["appointments"]
        return [item["title"] for item in found]

    assert titles() == ["new", "b"]
    assert titles(minRevision=1) == ["old"]
    assert titles(minRevision=2) == ["new", "b"]
    older = rest.call("GET", "/appointments/a", minRevision=0)
    assert (older.json["title"], older.headers["Organization-Revision"]) == ("old", "1")
    assert len(rest.call("GET", "/appointments/a/history", minRevision=1).json["entries"]) == 1
    assert rest.call("GET", "/changes", minRevision=1).json["revision"] == "1"
    refused = rest.call("GET", "/changes", minRevision=4)
    assert (refused.status, refused.fields) == (400, {"minRevision"})


def test_pages_of_a_list_go_on_from_one_server_to_another(lagging: Replicated) -> None:
    """The first page's revision as min_revision of the next keeps the pages consistent."""
    [standby], org = lagging.standbys, lagging.org
    for minute in range(2, 5):
        org.upsert(f"c{minute}", minute, minute + 1)
    before = lagging.count("behind")
    first = org.list_page(page_size=2, min_revision=6)
    following = {"page_size": 1, "min_revision": first.revision}
    second = org.list_page(page_token=first.next_page_token, **following)
    assert lagging.count("behind") == before + 2, "the primary has answered both"
    standby.resume()
    standby.catch_up()
    before = lagging.count("answered")
    third = org.list_page(page_token=second.next_page_token, **following)
    assert lagging.count("answered") == before + 1
    last = org.list_page(page_token=third.next_page_token)  # fresh
    pages = [first, second, third, last]
    assert [item.id for page in pages for item in page.appointments] == ["a", "b", "c2", "c3", "c4"]
    assert {page.revision for page in pages} == {6}
    assert last.next_page_token == ""


def test_pages_of_the_changes_do_not_end_early_at_a_replica(lagging: Replicated) -> None:
    first = changes(lagging.org, page_size=2)
    assert [entry.revision for entry in first.entries] == [1, 2]
    second = changes(lagging.org, page_token=first.next_page_token, min_revision=0)
    assert [entry.revision for entry in second.entries] == [3]
    assert second.revision == 3


def test_a_delayed_standby_is_asked_again_once_it_has_the_revision(
    start_replicated: StartReplicated,
) -> None:
    replicated = start_replicated()
    [standby] = replicated.standbys
    standby.delay("1h")
    replicated.org.upsert("a", 0, 1, title="new")
    standby.wait_until_received()
    answered = replicated.count("answered")
    assert replicated.titles(min_revision=1) == ["old"]
    assert replicated.titles(min_revision=2) == ["new"]
    assert replicated.count("answered") == answered + 1
    standby.delay("0")
    standby.catch_up()
    assert replicated.titles(min_revision=1) == ["new"]
    assert replicated.titles(min_revision=2) == ["new"]
    assert replicated.count("answered") == answered + 3


def test_a_promoted_standby_is_no_primary_and_may_lack_a_migration(
    start_replicated: StartReplicated,
) -> None:
    replicated = start_replicated()
    [standby], org = replicated.standbys, replicated.org
    org.upsert("a", 0, 1, title="new")
    org.upsert("b", 1, 2, title="b")
    standby.catch_up()
    assert standby.ask("SELECT pg_promote()")
    org.upsert("a", 0, 1, title="newer")
    assert replicated.titles() == ["newer", "b"]
    replicated.until_asked(standby)
    assert replicated.titles(min_revision=3) == ["new", "b"]
    assert replicated.titles(min_revision=4) == ["newer", "b"]
    with psycopg.connect(standby.server.url(DATABASE), autocommit=True) as connection:
        connection.execute("ALTER VIEW own.appointment_history RENAME TO not_migrated_yet")
    assert len(org.history("a", min_revision=0).entries) == 3
    assert replicated.count("failed") == 1
    replicated.until_asked(standby)


def test_reads_spread_over_the_replicas_and_go_on_without_them(
    start_replicated: StartReplicated,
) -> None:
    replicated = start_replicated(2)
    first, second = replicated.standbys
    before = [replicated.count("answered", standby) for standby in (first, second)]
    for _ in range(20):
        replicated.titles(min_revision=0)
    after = [replicated.count("answered", standby) for standby in (first, second)]
    assert [after[0] - before[0], after[1] - before[1]] == [10, 10]

    readers = Readers(replicated)
    until(lambda: readers.done > 100)
    first.server.stop(immediate=True)
    until(lambda: replicated.count("failed", first) > 0)
    answered = replicated.count("answered", second)
    until(lambda: replicated.count("answered", second) > answered + 100)
    second.server.stop(immediate=True)
    until(lambda: replicated.count("failed", second) > 0)
    done = readers.done
    until(lambda: readers.done > done + 100)
    readers.stop()
    assert readers.longest < 1, "no read waits for a replica that is gone"

    second.server.start()
    replicated.until_asked(second)
    first.server.start()
    replicated.until_asked(first)


@pytest.mark.parametrize("others", [0, 1])
def test_a_replica_that_hangs_is_waited_for_once(
    start_replicated: StartReplicated, others: int
) -> None:
    replicated = start_replicated(1 + others)
    hung = replicated.standbys[0]

    def timed() -> float:
        started = time.perf_counter()
        assert replicated.titles(min_revision=0) == ["old"]
        return time.perf_counter() - started

    with hung.hanging():
        first = [timed() for _ in range(1 + others)]
        assert 0.9 < max(first) < 2, "REPLICA_TIMEOUT is a second"
        assert replicated.count("failed", hung) == 1
        assert sum(timed() for _ in range(20)) < 0.9
        assert replicated.count("failed", hung) == 1
        # The service probes it in the background, without success.
        give_up = time.monotonic() + PROBE_INTERVAL + 2
        longest = 0.0
        while time.monotonic() < give_up:
            longest = max(longest, timed())
        assert longest < 0.9
        assert replicated.count("failed", hung) == 1
    replicated.until_asked(hung)


def test_a_replica_that_hangs_or_is_away_keeps_no_service_from_starting_and_stopping(
    start_replicated: StartReplicated, start_service: StartProgram, tmp_path: Path
) -> None:
    replicated = start_replicated()
    [hung] = replicated.standbys
    url = make_conninfo(hung.server.url(DATABASE), host=f"{hung.host},{tmp_path}")
    with hung.hanging():
        service = start_service(DATABASE_READ_URL=url)
        with grpc.insecure_channel(service.address) as channel:
            org = Organization(AppointmentServiceStub(channel), replicated.org.id)
            started = time.perf_counter()
            for _ in range(20):
                assert org.list_page(min_revision=0).revision == 0, "another primary's"
            assert time.perf_counter() - started < 0.9
        replicated.titles(min_revision=0)
        for program in (service, replicated.service):
            started = time.perf_counter()
            program.process.terminate()
            assert program.process.wait(timeout=30) == 0
            assert time.perf_counter() - started < 15


@pytest.mark.parametrize("end", ["cancelled", "terminated", "conflict"])
def test_a_read_that_is_ended_on_the_replica_comes_from_the_primary(
    start_replicated: StartReplicated, end: str
) -> None:
    replicated = start_replicated(REPLICA_TIMEOUT="60", **PATIENT)
    [standby] = replicated.standbys
    answered = replicated.count("answered")
    with ThreadPoolExecutor(1) as pool, standby.locked(conflict=end == "conflict"):
        read = pool.submit(replicated.titles, min_revision=1)
        standby.wait_for_a_waiting_read()
        if end == "conflict":
            standby.resume()
        else:
            function = "pg_cancel_backend" if end == "cancelled" else "pg_terminate_backend"
            standby.ask(f"SELECT {function}(pid) FROM pg_locks WHERE NOT granted")
        assert read.result(timeout=10) == ["old"]
    assert (replicated.count("failed"), replicated.count("answered")) == (1, answered)
    logged = replicated.service.wait_for_event(lambda event: event["event"] == "replica failed")
    assert logged["replica"] == standby.host
    assert {
        "cancelled": "due to user request",
        "terminated": "administrator command",
        "conflict": "conflict with recovery",
    }[end] in logged["error"]
    replicated.until_asked(standby)


def test_a_read_that_takes_too_long_on_the_replica_comes_from_the_primary(
    start_replicated: StartReplicated,
) -> None:
    replicated = start_replicated()
    [standby] = replicated.standbys
    with standby.locked():
        started = time.perf_counter()
        assert replicated.titles(min_revision=1) == ["old"]
        assert 0.9 < time.perf_counter() - started < 2
        assert replicated.count("failed") == 1


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("postgresql://user@h1:5432,h2:5433/db", ["h1:5432", "h2:5433"]),
        ("postgresql://h1,h2:5433/db", ["h1", "h2:5433"]),
        ("host=h1,h2 port=5433", ["h1:5433", "h2:5433"]),
        ("postgresql:///db?host=/run/a,/run/b", ["/run/a", "/run/b"]),
        ("hostaddr=192.0.2.1,192.0.2.2", ["192.0.2.1", "192.0.2.2"]),
        ("dbname=db", ["localhost"]),
        ("", []),
    ],
)
def test_the_hosts_of_a_connection_string(url: str, names: list[str]) -> None:
    assert list(by_host(url)) == names
    for conninfo in by_host(url).values():
        assert len(by_host(conninfo)) == 1


@pytest.mark.parametrize("url", ["h1,h2", "postgresql://u:secret@h1,h2,h3/db?port=1,2"])
def test_a_connection_string_of_no_use_is_named_but_not_shown(
    start_service: StartProgram, url: str
) -> None:
    with pytest.raises(StartError, match="DATABASE_READ_URL: must be a connection") as caught:
        start_service(DATABASE_READ_URL=url)
    assert "h1" not in str(caught.value)
