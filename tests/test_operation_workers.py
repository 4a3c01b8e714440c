"""Workers: in order, once, whatever is killed, stopped, locked or away."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from scripts.programs import Program
from scripts.stack import DATABASE
from tests.api import refusal_of
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.observing import held_lock, until
from tests.submitting import Submissions, metadata_of, response_of

# Leases that end soon, in a worker whose calls are short.
SHORT = {"OPERATION_LEASE": "0.5", "LOCK_TIMEOUT": "0.2", "STATEMENT_TIMEOUT": "0.2"}


class Place:
    """A database of the test's own, with a service and no worker."""

    def __init__(self, url: str, service: Program, channel: grpc.Channel) -> None:
        self.url = url
        self.service = service
        self.channel = channel
        self.sql = psycopg.connect(url, autocommit=True)

    def organization(self, id: str) -> Submissions:
        return Submissions(self.channel, id)

    def count(self, table: str, where: str = "true") -> int:
        row = self.sql.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
        assert row is not None
        number: int = row[0]
        return number

    def all_applied(self) -> bool:
        return self.count("queued_operations") == 0


@pytest.fixture
def place(create_database: CreateDatabase, start_service: StartProgram) -> Iterator[Place]:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    with grpc.insecure_channel(service.address) as channel:
        place = Place(url, service, channel)
        with place.sql:
            yield place


@pytest.fixture
def start(place: Place, start_worker: StartProgram) -> Callable[..., Program]:
    """Start a worker at the place."""
    return lambda **env: start_worker(DATABASE_URL=place.url, **env)


def _write(id: str, minute: int, **fields: object) -> str:
    return json.dumps(
        {
            "kind": "UPSERT",
            "id": id,
            "resource_id": "",
            "start_time": f"2030-01-07T{minute // 60:02}:{minute % 60:02}:00Z",
            "end_time": f"2030-01-07T{minute // 60:02}:{minute % 60:02}:30Z",
            "title": "",
            "attributes": {},
            "actor": "",
            "validate_only": False,
            **fields,
        }
    )


def _queue(place: Place, organization: str, *writes: str) -> None:
    """Put operations into the queue as no service would."""
    place.sql.execute(
        "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
        " SELECT %s, gen_random_uuid(), now(), write::json FROM unnest(%s::text[]) AS write",
        (organization, list(writes)),
    )


def test_several_workers_keep_the_order_of_each_organization(
    place: Place, start: Callable[..., Program]
) -> None:
    organizations = [place.organization(f"o{number}") for number in range(4)]

    def submit(org: Submissions) -> None:
        for number in range(150):
            org.upsert("a", 0, number + 1, title=str(number))

    with ThreadPoolExecutor(8) as pool:
        submitting = list(pool.map(lambda org: pool.submit(submit, org), organizations))
        for _ in range(3):
            start()
        for done in submitting:
            done.result()
    until(place.all_applied)
    for org in organizations:
        titles = [entry.appointment.title for entry in org.org.changes()]
        assert titles == [str(number) for number in range(150)]
        org.org.check_history()


def test_what_is_accepted_survives_when_everything_is_killed(
    place: Place, start: Callable[..., Program], start_service: StartProgram
) -> None:
    worker = start()
    accepted = []
    for number in range(200):
        accepted.append(
            place.organization(f"o{number % 5}").upsert(str(number), number, number + 1)
        )
        if number == 100:
            worker.kill()
    place.service.kill()
    assert place.count("queued_operations") > 0
    again = start_service(DATABASE_URL=place.url)
    start(**SHORT)
    with grpc.insecure_channel(again.address) as channel:
        for operation in accepted:
            done = Submissions(channel, "").wait(operation)
            assert metadata_of(done).outcome == pb.CREATED
        for number in range(5):
            org = Submissions(channel, f"o{number}").org
            assert len(org.changes()) == 40
            org.check_history()


@pytest.mark.parametrize("immediate", [True, False], ids=["crash", "restart"])
def test_the_database_away_and_back_while_operations_are_queued(
    own_postgres: OwnPostgres,
    start_service: StartProgram,
    start_worker: StartProgram,
    immediate: bool,
) -> None:
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(DATABASE_URL=url)
    workers = [start_worker(DATABASE_URL=url) for _ in range(2)]
    with grpc.insecure_channel(service.address) as channel:
        org = Submissions(channel, "o")
        accepted = [org.upsert(str(number), number, number + 1) for number in range(300)]
        postgres.stop(immediate=immediate)
        for worker in workers:
            worker.wait_for_event(lambda event: event["event"] == "operations not applied")
        postgres.start()
        started = time.monotonic()
        accepted += [_patiently(lambda: org.upsert("later", 400, 401))]
        for operation in accepted:
            assert metadata_of(org.wait(operation)).outcome == pb.CREATED
        assert time.monotonic() - started < 10, "leases are given back, not waited for"
        assert len(org.org.changes()) == 301
        org.org.check_history()
    assert [worker.stop() for worker in workers] == [0, 0]


def _patiently(submit: Callable[[], lro.Operation]) -> lro.Operation:
    while True:
        try:
            return submit()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            time.sleep(0.05)


def test_a_worker_stopped_beyond_its_lease_has_no_effect_when_it_goes_on(
    place: Place, start: Callable[..., Program]
) -> None:
    workers = [start(**SHORT), start(**SHORT)]
    organizations = [f"o{number}" for number in range(20)]
    stopped = threading.Event()

    def submit() -> list[lro.Operation]:
        accepted = []
        number = 0
        while not stopped.is_set():
            number += 1
            id = organizations[number % len(organizations)]
            minute = number // len(organizations)
            accepted.append(place.organization(id).upsert(str(number), minute, minute + 1))
        return accepted

    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(submit)
        try:
            for number in range(8):
                worker = workers[number % 2]
                worker.process.send_signal(signal.SIGSTOP)
                time.sleep(0.6)
                worker.process.send_signal(signal.SIGCONT)
        finally:
            stopped.set()
    accepted = submitting.result()
    until(place.all_applied)
    for operation in accepted:
        assert metadata_of(place.organization("").get(operation.name)).outcome == pb.CREATED
    assert place.count("appointment_history") == place.count("operations") == len(accepted)
    for id in organizations:
        place.organization(id).org.check_history()


def _lease(place: Place, most: int = 10, lease: str = "1 hour") -> list[tuple[str, int, int]]:
    query = "SELECT * FROM lease_operations('', %s, %s::interval)"
    return place.sql.execute(query, (most, lease)).fetchall()


def _apply(place: Place, organization: str, fence: int) -> str:
    leases = [{"organization_id": organization, "fence": fence, "only_one": False}]
    row = place.sql.execute(
        "SELECT status FROM apply_queued_operations(%s::json, 100, '1 hour')",
        (json.dumps(leases),),
    ).fetchone()
    assert row is not None
    status: str = row[0]
    return status


def test_only_the_latest_fence_may_apply(place: Place) -> None:
    org = place.organization("o")
    org.upsert("a", 0, 1)
    assert _lease(place, lease="-1 second") == [("o", 1, 0)]
    assert _lease(place) == [("o", 2, 0)]
    assert _lease(place) == []
    assert _apply(place, "o", 1) == "LOST"
    assert place.count("operations") == 0
    failed = place.sql.execute("SELECT give_up_operation('o', 1, 'late')").fetchone()
    assert failed == (None,)
    assert place.count("queued_operations") == 1
    assert _apply(place, "o", 2) == "DONE"
    assert _apply(place, "o", 2) == "DONE"
    assert len(org.org.changes()) == 1


def test_leasing_goes_round_in_order_and_takes_each_once(place: Place) -> None:
    for id in ("a", "B", "é", "~"):
        _queue(place, id, _write("a", 0))
    query = "SELECT organization_id FROM lease_operations(%s, %s, %s::interval)"

    def leased(after: str, most: int, lease: str) -> list[str]:
        return [id for (id,) in place.sql.execute(query, (after, most, lease))]

    assert leased("a", 3, "-1 second") == ["~", "é", "B"]
    assert leased("", 9, "-1 second") == ["B", "a", "~", "é"]
    assert leased("é", 1, "1 hour") == ["B"]
    assert leased("B", 9, "1 hour") == ["a", "~", "é"]
    assert leased("a", 9, "1 hour") == []


def test_two_that_lease_at_once_never_wait_for_each_other(place: Place) -> None:
    for id in ("a", "b"):
        _queue(place, id, _write("a", 0))
    query = "SELECT organization_id FROM lease_operations(%s, 1, '1 hour')"
    with psycopg.connect(place.url) as first, psycopg.connect(place.url) as second:
        for connection in (first, second):
            connection.execute("SET lock_timeout = '1s'")
        assert first.execute(query, ("",)).fetchall() == [("a",)]
        assert second.execute(query, ("a",)).fetchall() == [("b",)]
        assert first.execute(query, ("a",)).fetchall() == []
        assert second.execute(query, ("",)).fetchall() == []


@pytest.mark.parametrize(
    "bad",
    [
        {"end_time": "2030-01-07T07:00:00Z"},
        {"start_time": "never"},
        {"kind": "UPSERT", "attributes": None},
        {"expected_revision": "many"},
    ],
)
def test_what_the_database_refuses_fails_by_itself(
    place: Place, start: Callable[..., Program], bad: dict[str, object]
) -> None:
    org = place.organization("o")
    _queue(place, "o", _write("1", 1), _write("bad", 600, **bad), _write("2", 2), _write("3", 3))
    before = org.upsert("4", 4, 5)
    _queue(place, "other", _write("1", 1))
    start()
    assert metadata_of(org.wait(before)).outcome == pb.CREATED
    until(place.all_applied)
    assert [entry.appointment.id for entry in org.org.changes()] == ["1", "2", "3", "4"]
    [name] = org.listed(filter="error:*")
    failed = org.get(name)
    assert metadata_of(failed).appointment_id == "bad"
    told = refusal_of(failed.error, grpc.StatusCode.INTERNAL)
    assert told.reason == "OPERATION_FAILED"
    assert place.count("operations", "failure IS NOT NULL AND write IS NOT NULL") == 1
    assert len(place.organization("other").org.changes()) == 1


def test_what_is_no_write_at_all_fails_by_itself(
    place: Place, start: Callable[..., Program]
) -> None:
    _queue(place, "o", "5", _write("1", 1), "{}", "[]", '"x"', _write("2", 2))
    start()
    until(place.all_applied)
    assert len(place.organization("o").org.changes()) == 2
    assert place.count("operations", "failure IS NOT NULL") == 4


POISON = """
    CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF NEW.appointment_id = 'poison' THEN
            {action}
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER poison BEFORE INSERT ON appointment_history
    FOR EACH ROW EXECUTE FUNCTION poison();
"""
HANGS = "PERFORM pg_sleep(60);"
ENDS_THE_SESSION = "PERFORM pg_terminate_backend(pg_backend_pid());"


@pytest.mark.parametrize("action", [HANGS, ENDS_THE_SESSION], ids=["hangs", "ends"])
def test_what_never_has_an_answer_is_given_up_and_harms_nobody(
    place: Place, start: Callable[..., Program], action: str
) -> None:
    place.sql.execute(POISON.format(action=action).encode())
    org = place.organization("o5")
    accepted = [
        org.upsert(id, minute, minute + 1) for minute, id in enumerate(["1", "poison", "2"])
    ]
    for number in range(10):
        _queue(place, f"o{number}", _write("by hand", 600))
    started = time.monotonic()
    start(**SHORT)
    until(lambda: place.count("queued_operations", "organization_id <> 'o5'") == 0)
    assert time.monotonic() - started < 10
    until(lambda: place.count("operation_leases", "attempts > 1") == 1)
    assert place.count("operation_leases", "attempts > 0 AND organization_id <> 'o5'") == 0
    assert metadata_of(org.wait(accepted[0])).outcome == pb.CREATED
    # The other attempts would take minutes.
    place.sql.execute("UPDATE operation_leases SET attempts = 10 WHERE organization_id = 'o5'")
    given_up = org.wait(accepted[1])
    told = refusal_of(given_up.error, grpc.StatusCode.INTERNAL)
    assert told.reason == "OPERATION_FAILED"
    assert "10 calls" in told.message
    assert metadata_of(org.wait(accepted[2])).outcome == pb.CREATED
    assert org.listed(filter="error:*") == [accepted[1].name]
    until(place.all_applied)
    assert place.count("operations", "failure IS NOT NULL") == 1
    org.org.check_history()


def test_trouble_of_the_database_fails_no_operation(
    place: Place, start: Callable[..., Program]
) -> None:
    """A privilege that is missing for a while, say in a deployment."""
    org = place.organization("o")
    place.sql.execute("REVOKE INSERT ON appointment_history FROM appointments_service")
    accepted = [org.upsert(str(number), number, number + 1) for number in range(3)]
    worker = start(**SHORT)
    worker.wait_for_event(lambda event: "permission denied" in event.get("error", ""))
    # Leased again and again, and attempted.
    until(lambda: place.count("operation_leases", "fence > 3") == 1)
    assert place.count("operation_leases", "attempts = 0") == 1
    place.sql.execute("GRANT INSERT ON appointment_history TO appointments_service")
    for operation in accepted:
        assert metadata_of(org.wait(operation)).outcome == pb.CREATED


def test_locked_organizations_hold_up_nobody(place: Place, start: Callable[..., Program]) -> None:
    locked = [place.organization(f"locked{number}") for number in range(6)]
    with ExitStack() as stack:
        for org in locked:
            stack.enter_context(held_lock(place.url, org.id))
        waiting = [org.upsert("a", 0, 1) for org in locked]
        start()
        until(lambda: place.count("pg_locks", "locktype = 'advisory' AND NOT granted") == 1)
        for number in range(40):
            org = place.organization(f"free{number % 8}")
            started = time.monotonic()
            assert metadata_of(org.wait(org.upsert(str(number), number, number + 1))).HasField(
                "outcome"
            )
            assert time.monotonic() - started < 1
        # Long enough that each was waited for in vain.
        until(lambda: place.count("operation_leases", "fence > 8") >= len(locked))
        assert place.count("operation_leases", "attempts > 0") == 0
        assert place.count("queued_operations") == len(locked)
    for org, operation in zip(locked, waiting, strict=True):
        assert metadata_of(org.wait(operation)).outcome == pb.CREATED


@pytest.mark.parametrize("commits", [True, False])
def test_a_row_written_by_hand_holds_up_its_organization_alone(
    place: Place, start: Callable[..., Program], commits: bool
) -> None:
    """Without the organization's lock: only the constraint sees the overlap, and waits."""
    org = place.organization("o")
    free = [place.organization(f"free{number}") for number in range(5)]
    with psycopg.connect(place.url) as by_hand:
        by_hand.execute(
            "INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,"
            " end_time, title, attributes, created_at, updated_at, updated_at_given, state,"
            " version, revision) VALUES ('o', 'by hand', '', '2030-01-07 08:01Z',"
            " '2030-01-07 08:02Z', '', '{}', now(), now(), false, 'ACTIVE', 1, 1000)"
        )
        operations = [org.upsert(str(minute), minute, minute + 1) for minute in range(3)]
        others = [each.upsert("a", 0, 1) for each in free]
        start()
        for each, operation in zip(free, others, strict=True):
            assert metadata_of(each.wait(operation)).outcome == pb.CREATED
        assert metadata_of(org.wait(operations[0])).outcome == pb.CREATED
        assert not org.wait(operations[1], timeout=0.5).done
        by_hand.commit() if commits else by_hand.rollback()
    second = org.wait(operations[1])
    assert metadata_of(org.wait(operations[2])).outcome == pb.CREATED
    if commits:
        told = refusal_of(second.error, grpc.StatusCode.ALREADY_EXISTS)
        assert told.reason == "TIME_RANGE_CONFLICT"
        assert [conflict.id for conflict in told.conflicts] == ["by hand"]
    else:
        assert metadata_of(second).outcome == pb.CREATED


def test_large_organizations_do_not_keep_small_ones_waiting(
    place: Place, start: Callable[..., Program]
) -> None:
    """More of them than calls that go on at a time."""
    for number in range(6):
        _queue(place, f"large{number}", *[_write("a", minute % 1440) for minute in range(6000)])
    start()
    until(lambda: place.count("operation_leases", "leased_until > now()") == 6)
    for number in range(10):
        small = place.organization(f"small{number}")
        assert metadata_of(small.wait(small.upsert("a", 0, 1))).outcome == pb.CREATED
    assert place.count("(SELECT DISTINCT organization_id FROM queued_operations) AS left_over") == 6


def test_synchronous_and_asynchronous_writes_keep_every_promise_together(
    place: Place, start: Callable[..., Program]
) -> None:
    for _ in range(2):
        start()
    organizations = [place.organization(f"o{number}") for number in range(3)]

    def write(writer: int) -> list[tuple[Submissions, lro.Operation]]:
        rng = random.Random(writer)
        accepted = []
        for number in range(60):
            org = rng.choice(organizations)
            id, start = str(rng.randrange(30)), rng.randrange(200)
            options = {"idempotency_key": f"{writer}-{number}"} if rng.random() < 0.5 else {}
            try:
                match rng.randrange(5):
                    case 0:
                        org.org.cancel(id)
                    case 1:
                        accepted.append((org, org.cancel(id)))
                    case 2:
                        org.org.upsert(id, start, start + 5, **options)
                    case _:
                        accepted.append((org, org.upsert(id, start, start + 5, **options)))
                        if options:
                            accepted.append((org, org.upsert(id, start, start + 5, **options)))
            except grpc.RpcError as error:
                assert error.code() in (
                    grpc.StatusCode.ALREADY_EXISTS,
                    grpc.StatusCode.NOT_FOUND,
                )
        return accepted

    with ThreadPoolExecutor(16) as pool:
        accepted = [pair for pairs in pool.map(write, range(16)) for pair in pairs]
    until(place.all_applied)
    histories = {
        org.id: {entry.revision: entry for entry in org.org.changes()} for org in organizations
    }
    for org, operation in accepted:
        done = org.get(operation.name)
        assert done.done
        if done.WhichOneof("result") == "response":
            stored = response_of(done)
            entry = histories[org.id][stored.revision]
            assert stored == entry.appointment
            outcome = pb.Outcome.Name(metadata_of(done).outcome)
            assert outcome in (pb.HistoryEntry.Change.Name(entry.change), "UNCHANGED")
        else:
            assert done.error.code in (
                grpc.StatusCode.ALREADY_EXISTS.value[0],
                grpc.StatusCode.NOT_FOUND.value[0],
            )
    for org in organizations:
        org.org.check_history()
