"""Workers: in order, once, whatever is killed, stopped or away."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from local.stack import DATABASE
from tests.conftest import OwnPostgres, StartProgram
from tests.observing import until
from tests.place import SHORT, Place, queued_write
from tests.submitting import Submissions, metadata_of, response_of


def test_several_workers_keep_the_order_of_each_organization(
    place: Place, start_beside: StartProgram
) -> None:
    organizations = [place.organization(f"o{number}") for number in range(4)]

    def submit(org: Submissions) -> None:
        for number in range(150):
            org.upsert("a", 0, number + 1, title=str(number))

    with ThreadPoolExecutor(8) as pool:
        submitting = list(pool.map(lambda org: pool.submit(submit, org), organizations))
        for _ in range(3):
            start_beside()
        for done in submitting:
            done.result()
    until(place.all_applied)
    for org in organizations:
        titles = [entry.appointment.title for entry in org.org.changes()]
        assert titles == [str(number) for number in range(150)]
        org.org.check_history()


def test_what_is_accepted_survives_when_everything_is_killed(
    place: Place, start_beside: StartProgram, start_service: StartProgram
) -> None:
    worker = start_beside()
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
    start_beside(**SHORT)
    with grpc.insecure_channel(again.address) as channel:
        for operation in accepted:
            done = Submissions(channel, "").wait(operation)
            assert metadata_of(done).outcome == pb.CREATED
        for number in range(5):
            org = Submissions(channel, f"o{number}").org
            assert len(org.changes()) == 40
            org.check_history()


def test_nothing_is_answered_before_it_is_stored(place: Place) -> None:
    org = place.organization("o")
    with psycopg.connect(place.url) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE queued_operations IN SHARE MODE")
        submitting = pool.submit(org.upsert, "a", 0, 1)
        until(lambda: place.count("pg_locks", "NOT granted") == 1)
        assert not submitting.done()
        assert org.listed() == []
        holder.rollback()
        accepted = submitting.result()
        assert org.listed() == [accepted.name]


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
    place: Place, start_beside: StartProgram
) -> None:
    workers = [start_beside(**SHORT), start_beside(**SHORT)]
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


def test_operations_that_are_brought_again_are_passed_over(place: Place) -> None:
    ids = ["01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"]
    operations = [
        {
            "operation_id": id,
            "accepted_at": "2030-01-01T00:00:00Z",
            "write": json.loads(queued_write("a", minute)),
        }
        for minute, id in enumerate(ids)
    ]
    for brought in (operations, operations[:1], [*operations, operations[0]]):
        place.sql.execute("SELECT apply_operations('o', %s::json)", (json.dumps(brought),))
    assert len(place.organization("o").org.changes()) == 2
    assert place.count("operations") == 2


def test_leasing_goes_round_in_order_and_takes_each_once(place: Place) -> None:
    for id in ("a", "B", "é", "~"):
        place.queue(id, queued_write("a", 0))
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
        place.queue(id, queued_write("a", 0))
    query = "SELECT organization_id FROM lease_operations(%s, 1, '1 hour')"
    with psycopg.connect(place.url) as first, psycopg.connect(place.url) as second:
        for connection in (first, second):
            connection.execute("SET lock_timeout = '1s'")
        assert first.execute(query, ("",)).fetchall() == [("a",)]
        assert second.execute(query, ("a",)).fetchall() == [("b",)]
        assert first.execute(query, ("a",)).fetchall() == []
        assert second.execute(query, ("",)).fetchall() == []


def test_large_organizations_do_not_keep_small_ones_waiting(
    place: Place, start_beside: StartProgram
) -> None:
    """More of them than calls that go on at a time."""
    for number in range(6):
        place.queue(f"large{number}", *[queued_write("a", minute % 1440) for minute in range(6000)])
    start_beside()
    until(lambda: place.count("operation_leases", "leased_until > now()") == 6)
    for number in range(10):
        small = place.organization(f"small{number}")
        assert metadata_of(small.wait(small.upsert("a", 0, 1))).outcome == pb.CREATED
    assert place.count("(SELECT DISTINCT organization_id FROM queued_operations) AS left_over") == 6


def test_synchronous_and_asynchronous_writes_keep_every_promise_together(
    place: Place, start_beside: StartProgram
) -> None:
    for _ in range(2):
        start_beside()
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
