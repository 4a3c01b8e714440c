"""Only the queue in PostgreSQL has these: leases with fences, and lists of queued operations."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from google.longrunning import operations_pb2 as lro

from tests.api import refusal
from tests.conftest import StartProgram
from tests.observing import until
from tests.operations.place import SHORT, Place, queued_write
from tests.operations.submissions import metadata_of


def test_an_operation_is_answered_after_it_is_stored(place: Place) -> None:
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


def test_a_queued_operation_is_shown_as_accepted(place: Place) -> None:
    org = place.organization("o")
    accepted = org.upsert("a", 0, 1)
    assert metadata_of(accepted).appointment_id == "a"
    assert org.get(accepted.name) == accepted
    for seconds in (0, 0.2):
        assert org.wait(accepted, timeout=seconds) == accepted
    request = lro.WaitOperationRequest(name=accepted.name)
    assert org.operations.WaitOperation(request, timeout=1.0) == accepted
    assert list(org.page().operations) == [accepted]


def test_a_worker_suspended_beyond_its_lease_has_no_effect_when_it_continues(
    place: Place, start_place_worker: StartProgram
) -> None:
    workers = [start_place_worker(**SHORT), start_place_worker(**SHORT)]
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


def test_operations_that_are_applied_again_are_skipped(place: Place) -> None:
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


def test_organizations_are_leased_in_order_and_once_each(place: Place) -> None:
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


def test_concurrent_leasing_does_not_wait(place: Place) -> None:
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


def test_large_organizations_do_not_delay_small_ones(
    place: Place, start_place_worker: StartProgram
) -> None:
    """There are more large organizations than concurrent calls."""
    for number in range(6):
        place.queue(f"large{number}", *[queued_write("a", minute % 1440) for minute in range(6000)])
    start_place_worker()
    until(lambda: place.count("operation_leases", "leased_until > now()") == 6)
    for number in range(10):
        small = place.organization(f"small{number}")
        assert metadata_of(small.wait(small.upsert("a", 0, 1))).outcome == pb.CREATED
    assert place.count("(SELECT DISTINCT organization_id FROM queued_operations) AS left_over") == 6


def test_lists_include_queued_operations(place: Place, start_place_worker: StartProgram) -> None:
    later = place.organization("o")
    names = [later.upsert(str(number), 0, 1).name for number in range(9)]
    # Sorted by id: operations of the same millisecond have no order.
    assert later.listed(filter="done=false", page_size=4) == sorted(names, reverse=True)
    assert later.listed(filter="done=true") == later.listed(filter="error:*") == []
    worker = start_place_worker()
    for name in names:
        later.wait(lro.Operation(name=name))
    worker.stop()
    queued = [later.upsert(str(number), 0, 1).name for number in range(3)]
    every = sorted([*names, *queued], reverse=True)
    assert later.listed(page_size=1) == later.listed(page_size=0) == every
    assert later.listed(filter="done=false") == sorted(queued, reverse=True)
    assert later.listed(filter="done=true", page_size=4) == sorted(names, reverse=True)
    assert later.listed(filter="error:*", page_size=3) == sorted(names[1:], reverse=True)


def test_an_operation_of_another_organization_is_not_found(place: Place) -> None:
    org = place.organization("here")
    accepted = org.upsert("a", 0, 1)
    other = accepted.name.replace(org.id, "elsewhere")
    with pytest.raises(grpc.RpcError) as caught:
        org.get(other)
    assert refusal(caught.value).reason == "OPERATION_NOT_FOUND"


def test_expired_results_are_purged(place: Place, start_place_worker: StartProgram) -> None:
    later = place.organization("o")
    start_place_worker(OPERATION_RETENTION_DAYS="0.000001")
    names = [later.upsert(str(number), number, number + 1).name for number in range(5)]
    until(lambda: len(later.org.changes()) == 5)
    until(lambda: later.listed() == [])
    with pytest.raises(grpc.RpcError) as caught:
        later.get(names[0])
    assert refusal(caught.value).reason == "OPERATION_NOT_FOUND"
