"""Batches of several organizations in one database call: what they share and what not."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, metric, until

WRITERS = 32
WRITES = 20


@pytest.mark.parametrize(
    ("settings", "shared"), [({}, True), ({"MAX_CALL_ORGANIZATIONS": "1"}, False)]
)
def test_organizations_share_calls_unless_told_not_to(
    start_service: StartProgram, organization: str, settings: dict[str, str], shared: bool
) -> None:
    service = start_service(**settings)
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(WRITERS) as pool:
        stub = AppointmentServiceStub(channel)

        def write(writer: int) -> Organization:
            org = Organization(stub, f"{organization}-{writer}")
            for number in range(WRITES):
                org.upsert(str(number), number, number + 1)
            return org

        for org in pool.map(write, range(WRITERS)):
            org.check_history()
            assert len(org.listed()) == WRITES
    calls = metric(service, "appointments_batch_writes_count")
    assert metric(service, "appointments_batch_writes_sum") == WRITERS * WRITES
    # Each organization has one write at a time, so that a batch has one without sharing.
    assert calls < WRITERS * WRITES / 2 if shared else calls == WRITERS * WRITES


def test_more_locked_organizations_than_connections_slow_nobody_else(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT, WRITE_CONNECTIONS="3")
    with (
        grpc.insecure_channel(service.address) as channel,
        ThreadPoolExecutor(12) as pool,
        ExitStack() as locks,
    ):
        stub = AppointmentServiceStub(channel)
        locked = [Organization(stub, f"{organization}-{number}") for number in range(6)]
        free = Organization(stub, f"{organization}-free")
        held = [locks.enter_context(held_lock(database_url, org.id)) for org in locked]
        waiting = [pool.submit(org.upsert, id, 0, 1) for org in locked for id in "ab"]
        until(lambda: sum(lock.waiting() for lock in held) == 2)
        durations = []
        for number in range(100):
            started = time.perf_counter()
            free.upsert(str(number), number, number + 1)
            durations.append(time.perf_counter() - started)
        assert not any(write.done() for write in waiting)
        locks.close()
        # Of two writes for the same minute, one succeeds.
        outcomes = [write.exception() is None for write in waiting]
        assert [sum(outcomes[n : n + 2]) for n in range(0, len(outcomes), 2)] == [1] * len(locked)
    assert statistics.median(durations) < 0.1


def test_a_row_locked_by_hand_holds_up_its_own_organization_only(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    """The row is written without the advisory lock, so the shared call must be repeated alone."""
    service = start_service(**PATIENT)
    with (
        grpc.insecure_channel(service.address) as channel,
        ThreadPoolExecutor(8) as pool,
        psycopg.connect(database_url) as by_hand,
    ):
        stub = AppointmentServiceStub(channel)
        stuck = Organization(stub, f"{organization}-stuck")
        stuck.upsert("stuck", 0, 1)
        by_hand.execute(
            "SELECT FROM appointments WHERE organization_id = %s FOR UPDATE", (stuck.id,)
        )

        def write(writer: int) -> float:
            org = Organization(stub, f"{organization}-{writer}")
            slowest = 0.0
            for number in range(30):
                started = time.perf_counter()
                org.upsert(str(number), number, number + 1)
                slowest = max(slowest, time.perf_counter() - started)
            return slowest

        others = [pool.submit(write, writer) for writer in range(6)]
        moved = pool.submit(stuck.upsert, "stuck", 5, 6)
        assert max(other.result() for other in others) < 2
        assert not moved.done()
        by_hand.rollback()
        assert moved.result().outcome == pb.UPDATED
        stuck.check_history()
