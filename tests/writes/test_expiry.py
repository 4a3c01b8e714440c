"""Workers record expired holds: soon, each once, whatever else happens."""

import threading
import time
from collections.abc import Callable

import grpc
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from service.writes.expiry import MAX_WRITES
from tests.api import Organization, batch_request, soon
from tests.api import appointment as wanted
from tests.observing import held_lock, metric, until
from tests.operations.place import Place

CREATED, EXPIRED = pb.HistoryEntry.CREATED, pb.HistoryEntry.EXPIRED

# Seconds within which a worker records an expired hold.
SOON = 5.0

StartWorker = Callable[..., Program]


def at(place: Place, id: str) -> Organization:
    return Organization(AppointmentServiceStub(place.channel), id)


def hold_many(org: Organization, count: int) -> None:
    """Hold minutes, each of its own, for a short time."""
    for first in range(0, count, 100):
        end = soon(2.5)
        minutes = range(first, min(first + 100, count))
        request = batch_request(
            wanted(org.id, str(minute), minute, minute + 1, hold_until=end) for minute in minutes
        )
        results = org.stub.BatchUpsertAppointments(request, timeout=30).results
        assert all(result.outcome == pb.CREATED for result in results)


def wait_until_due(place: Place) -> None:
    until(lambda: place.count("appointments", "state = 'HELD' AND hold_until > now()") == 0)


def recorded(worker: Program) -> float:
    return metric(worker, "appointments_hold_expiry_delay_seconds_count")


def check_expired(org: Organization, count: int) -> list[pb.HistoryEntry]:
    """Assert that each hold expired once, and return the changes that say so."""
    changes = [entry for entry in org.changes() if entry.change == EXPIRED]
    assert len({entry.appointment.id for entry in changes}) == len(changes) == count
    org.check_history()
    return changes


def test_a_worker_records_expired_holds_within_seconds(
    place: Place, start_place_worker: StartWorker
) -> None:
    org = at(place, "a")
    end = soon(2.5)
    org.upsert("before", 0, 10, hold_until=end, additional_resource_ids=["room"])
    worker = start_place_worker()
    org.upsert("later", 10, 20, hold_until=soon(60))
    org.upsert("firm", 20, 30)
    until(lambda: len(org.changes()) > 3)
    [entry] = check_expired(org, 1)
    assert entry.appointment.id == "before"
    assert (entry.appointment.state, entry.appointment.version) == (pb.Appointment.EXPIRED, 2)
    assert (entry.appointment.hold_until, entry.actor) == (end, "")
    delay = (entry.recorded_at.ToNanoseconds() - end.ToNanoseconds()) / 1e9
    assert 0 <= delay < SOON
    until(lambda: recorded(worker) == 1)
    measured = metric(worker, "appointments_hold_expiry_delay_seconds_sum")
    assert delay <= measured < delay + SOON


def test_several_workers_record_each_expiry_once(
    place: Place, start_place_worker: StartWorker
) -> None:
    organizations = [at(place, str(number)) for number in range(20)]
    for org in organizations:
        hold_many(org, 50)
    workers = [start_place_worker() for _ in range(3)]
    until(lambda: place.count("appointments", "state = 'HELD'") == 0)
    for org in organizations:
        check_expired(org, 50)
    until(lambda: sum(map(recorded, workers)) == 1000)
    assert place.count("appointments", "state <> 'EXPIRED'") == 0


def test_a_locked_organization_delays_only_itself(
    place: Place, start_place_worker: StartWorker
) -> None:
    locked, other = at(place, "locked"), at(place, "other")
    # More than one query finds.
    hold_many(locked, 1100)
    wait_until_due(place)
    with held_lock(place.url, locked.id) as lock:
        start_place_worker(LOCK_TIMEOUT="0.2")
        lock.wait_for(1)
        hold_many(other, 3)
        until(lambda: len(other.changes()) == 6, within=SOON)
        # It has waited in vain, and waits again.
        lock.wait_for(0)
        lock.wait_for(1)
        assert place.count("appointment_history", "organization_id = 'locked'") == 1100
    until(lambda: place.count("appointments", "state = 'HELD'") == 0)
    check_expired(locked, 1100)


def test_bookings_go_on_between_the_expiries_of_an_organization(
    place: Place, start_place_worker: StartWorker
) -> None:
    org = at(place, "a")
    hold_many(org, 600)
    wait_until_due(place)
    with held_lock(place.url, org.id) as lock:
        start_place_worker(LOCK_TIMEOUT="20", STATEMENT_TIMEOUT="20")
        lock.wait_for(1)
        booking = threading.Thread(target=org.upsert, args=("b", 1000, 1010))
        booking.start()
        lock.wait_for(2)
    booking.join()
    until(lambda: place.count("appointments", "state = 'HELD'") == 0)
    changes = [(entry.change, entry.appointment.id) for entry in org.changes()]
    # One batch was before it.
    assert changes.index((CREATED, "b")) == 600 + MAX_WRITES
    check_expired(org, 600)


def test_an_error_ends_neither_the_loop_nor_other_organizations(
    place: Place, start_place_worker: StartWorker
) -> None:
    broken, other = at(place, "broken"), at(place, "other")
    place.sql.execute(
        "ALTER TABLE appointment_history ADD CONSTRAINT breaks"
        " CHECK (organization_id <> 'broken' OR change <> 'EXPIRED') NOT VALID"
    )
    hold_many(broken, 3)
    hold_many(other, 3)
    worker = start_place_worker()
    errors = 'appointments_unexpected_errors_total{loop="expire holds"}'
    until(lambda: len(other.changes()) == 6, within=SOON)
    until(lambda: metric(worker, errors) >= 1)
    # Every connection is lost, too.
    place.sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    place.sql.execute("ALTER TABLE appointment_history DROP CONSTRAINT breaks")
    until(lambda: place.count("appointments", "state = 'HELD'") == 0)
    check_expired(broken, 3)


def test_without_a_worker_an_expired_hold_delays_no_booking(
    place: Place, start_place_worker: StartWorker
) -> None:
    """A worker that was stopped for a while has nothing left to record afterwards."""
    worker = start_place_worker()
    worker.stop()
    org = at(place, "a")
    end = soon(2.5)
    org.upsert("held", 0, 30, hold_until=end)
    began = time.monotonic()
    while True:
        try:
            org.upsert("b", 10, 20)
            break
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert time.monotonic() - began < 2.5 + SOON
    start_place_worker()
    entries = org.changes()
    assert [entry.change for entry in entries] == [CREATED, EXPIRED, CREATED]
    assert entries[1].recorded_at.ToNanoseconds() >= end.ToNanoseconds()
    org.check_history()
