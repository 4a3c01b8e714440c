"""Concurrent callers: one winner per slot, no lost writes, independent organizations."""

import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization, appointment, batch_request, check_no_overlap, refusal
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, metric, until

WRITERS = 64
SLOTS = 40


def test_64_writers_on_one_organization_leave_one_winner_per_slot(
    stub: AppointmentServiceStub, organization: str
) -> None:
    org = Organization(stub, organization)
    barrier = threading.Barrier(WRITERS)

    def write(writer: int) -> list[int]:
        slots = list(range(SLOTS))
        random.Random(writer).shuffle(slots)
        won = []
        barrier.wait()
        for slot in slots:
            try:
                org.upsert(f"{writer}-{slot}", slot * 10, slot * 10 + 10)
            except grpc.RpcError as error:
                assert refusal(error).reason == "TIME_RANGE_CONFLICT"
            else:
                won.append(slot)
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [slot for slots in pool.map(write, range(WRITERS)) for slot in slots]
    assert sorted(won) == list(range(SLOTS))
    assert len(org.listed()) == SLOTS
    org.check_history()


def test_64_writers_that_move_and_cancel_keep_every_promise(
    stub: AppointmentServiceStub, organization: str
) -> None:
    """After colliding updates, cancels, batches and keys, the history must replay."""
    org = Organization(stub, organization)
    barrier = threading.Barrier(WRITERS)

    def write(writer: int) -> None:
        rng = random.Random(writer)
        barrier.wait()
        for number in range(30):
            id = f"{rng.randrange(50)}"
            start = rng.randrange(200)
            try:
                match rng.randrange(4):
                    case 0:
                        org.cancel(id)
                    case 1:
                        items = [
                            appointment(org.id, f"{rng.randrange(50)}", start + n, start + n + 2)
                            for n in range(5)
                        ]
                        org.stub.BatchUpsertAppointments(batch_request(items))
                    case _:
                        key = f"{writer}-{number}"
                        first = org.upsert(id, start, start + 5, idempotency_key=key)
                        if first.outcome in (pb.CREATED, pb.UPDATED):
                            assert org.upsert(id, start, start + 5, idempotency_key=key) == first
            except grpc.RpcError as error:
                assert refusal(error).reason in ("TIME_RANGE_CONFLICT", "APPOINTMENT_NOT_FOUND")

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    org.check_history()


def test_readers_never_see_an_overlap_while_writers_move(
    stub: AppointmentServiceStub, organization: str
) -> None:
    """Two appointments swap their ranges repeatedly; every list is consistent."""
    org = Organization(stub, organization)
    stop = threading.Event()

    def write(id: str) -> None:
        place = 0
        while not stop.is_set():
            place += 1
            try:
                org.upsert(id, place % 5 * 10, place % 5 * 10 + 10)
            except grpc.RpcError as error:
                assert refusal(error).reason == "TIME_RANGE_CONFLICT"

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, id) for id in "abc"]
        try:
            for _ in range(300):
                page = org.list_page()
                check_no_overlap(list(page.appointments))
                assert all(item.revision <= page.revision for item in page.appointments)
        finally:
            stop.set()
        for writer in writers:
            writer.result()


def test_a_read_sees_every_write_that_was_answered_before(
    stub: AppointmentServiceStub, organization: str
) -> None:
    def write_and_read(writer: int) -> None:
        org = Organization(stub, f"{organization}-{writer % 4}")
        for number in range(25):
            stored = org.upsert(
                f"{writer}-{number}", 100 * writer + number, 100 * writer + number + 1
            )
            page = org.list_page(resource_id="")
            assert stored.appointment in page.appointments
            assert page.revision >= stored.appointment.revision

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write_and_read, range(16)))


def test_one_locked_organization_does_not_slow_another(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    rounds, writes = 8, 50
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(4) as pool:
        stub = AppointmentServiceStub(channel)
        free = Organization(stub, f"{organization}-free")
        locked = Organization(stub, f"{organization}-locked")

        def seconds_of_a_write(first: int) -> float:
            durations = []
            for number in range(first, first + writes):
                started = time.perf_counter()
                free.upsert(str(number), number, number + 1)
                durations.append(time.perf_counter() - started)
            return statistics.median(durations)

        seconds_of_a_write(0)
        without, during = [], []
        # Alternately, because of other load on the machine.
        for number in range(1, rounds + 1):
            without.append(seconds_of_a_write(number * 1000))
            with held_lock(database_url, locked.id) as lock:
                waiting = [
                    pool.submit(
                        locked.upsert, f"{number}-{n}", number * 10 + n, number * 10 + n + 1
                    )
                    for n in range(4)
                ]
                lock.wait_for(1)
                calls = metric(service, "appointments_batch_writes_count")
                during.append(seconds_of_a_write(number * 1000 + writes))
                assert metric(service, "appointments_batch_writes_count") == calls + writes
                assert lock.waiting() == 1, "one batch of the locked organization at a time"
                assert not any(write.done() for write in waiting)
            assert all(write.result().outcome == pb.CREATED for write in waiting)
        assert min(during) < 2 * min(without)


def test_what_waits_for_one_organization_goes_as_one_batch(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(32) as pool:
        org = Organization(AppointmentServiceStub(channel), organization)
        with held_lock(database_url, organization) as lock:
            first = pool.submit(org.upsert, "first", -2, -1)
            lock.wait_for(1)
            writes = [pool.submit(org.upsert, str(n), n, n + 1) for n in range(31)]
            until(lambda: metric(service, "appointments_queued_writes") == 31)
        assert {write.result().outcome for write in [first, *writes]} == {pb.CREATED}
        assert metric(service, "appointments_batch_writes_count") == 2
        assert metric(service, "appointments_batch_writes_sum") == 32
        assert metric(service, "appointments_lock_wait_seconds_count") == 2
        org.check_history()


@pytest.mark.parametrize("moment", ["queued", "in flight"])
def test_an_overlap_that_only_the_constraint_sees_fails_that_write_alone(
    start_service: StartProgram, database_url: str, organization: str, moment: str
) -> None:
    """A row is inserted without the lock and committed after the service's check."""
    service = start_service(**PATIENT)
    with (
        grpc.insecure_channel(service.address) as channel,
        ThreadPoolExecutor(8) as pool,
        psycopg.connect(database_url) as by_hand,
        psycopg.connect(database_url, autocommit=True) as watcher,
    ):
        org = Organization(AppointmentServiceStub(channel), organization)
        by_hand.execute(
            "INSERT INTO appointments (organization_id, appointment_id, resource_id, start_time,"
            " end_time, title, attributes, created_at, updated_at, updated_at_given, state,"
            " version, revision) VALUES (%s, 'by hand', '', '2030-01-07 08:03Z',"
            " '2030-01-07 08:04Z', '', '{}', now(), now(), false, 'ACTIVE', 1, 1000)",
            (organization,),
        )
        count = 1 if moment == "in flight" else 6
        with held_lock(database_url, organization) as lock:
            first = pool.submit(org.upsert, "first", -2, -1)
            lock.wait_for(1)
            writes = [
                pool.submit(org.refused if n == 3 else org.upsert, str(n), n, n + 1)
                for n in ([3] if count == 1 else range(count))
            ]
            until(lambda: metric(service, "appointments_queued_writes") == count)
        # The constraint makes the batch wait for the other transaction.
        until(
            lambda: (
                watcher.execute(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                ).fetchone()
                == (1,)
            )
        )
        by_hand.commit()
        assert first.result().outcome == pb.CREATED
        results: list[Any] = [write.result() for write in writes]
    refused = results[0 if count == 1 else 3]
    assert refused.reason == "TIME_RANGE_CONFLICT"
    assert [conflict.id for conflict in refused.conflicts] == ["by hand"]
    others = [result for result in results if result is not refused]
    assert {result.outcome for result in others} <= {pb.CREATED}
