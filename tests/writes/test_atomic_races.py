"""Atomic batches, other writers, and what the database does meanwhile."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization, Refusal, appointment, batch_request, refusal, refused
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, until
from tests.operations.place import Place
from tests.writes.test_atomic_batches import items, outcomes


def test_of_batches_that_want_the_same_places_one_wins_whole(org: Organization) -> None:
    def write(writer: int) -> str:
        wanted = [(f"{writer}-{n}", n * 10.0, n * 10.0 + 10) for n in range(20)]
        # Each begins at another place, so that they would take some of each other's.
        request = items(org, *wanted[writer:], *wanted[:writer])
        barrier.wait()
        try:
            org.stub.BatchUpsertAppointments(request)
        except grpc.RpcError as error:
            assert refusal(error).reason == "BATCH_REFUSED"
            return "refused"
        return f"{writer}"

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, range(8)))
    assert results.count("refused") == 7
    [winner] = set(results) - {"refused"}
    assert {id.partition("-")[0] for id in org.listed()} == {winner}
    assert len(org.changes()) == 20


def test_batches_and_single_writes_keep_every_promise(org: Organization) -> None:
    barrier = threading.Barrier(8)
    written = []

    def write(writer: int) -> None:
        rng = random.Random(writer)
        barrier.wait()
        for _ in range(25):
            ids = rng.sample(range(24), 4)
            resources = rng.sample("abcd", 4)
            wanted = [
                appointment(
                    org.id,
                    f"{id}",
                    start,
                    start + 5,
                    resource_id=resources[0],
                    additional_resource_ids=resources[1 : rng.randrange(1, 4)],
                )
                for id in ids
                for start in [rng.randrange(120)]
            ]
            try:
                if rng.randrange(3):
                    request = batch_request(wanted)
                    request.atomic = True
                    written.append(len(org.stub.BatchUpsertAppointments(request).results))
                else:
                    org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=wanted[0]))
            except grpc.RpcError as error:
                assert refusal(error).reason in ("BATCH_REFUSED", "TIME_RANGE_CONFLICT")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert written
    org.check_history()


@pytest.mark.parametrize("committed", [True, False])
def test_a_batch_waits_for_a_row_that_is_being_written_by_hand(
    start_service: StartProgram, database_url: str, organization: str, *, committed: bool
) -> None:
    service = start_service(**PATIENT)
    with (
        grpc.insecure_channel(service.address) as channel,
        ThreadPoolExecutor(1) as pool,
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
        request = items(org, ("a", 0, 2), ("b", 2, 5))
        answer = pool.submit(
            partial(refused, org.stub.BatchUpsertAppointments, request)
            if committed
            else partial(outcomes, org, request)
        )
        until(
            lambda: (
                watcher.execute(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                ).fetchone()
                == (1,)
            )
        )
        if committed:
            by_hand.commit()
            refusal = answer.result()
            assert isinstance(refusal, Refusal)
            [item] = refusal.items
            assert (item.index, [c.id for c in item.conflicts]) == (1, ["by hand"])
        else:
            by_hand.rollback()
            assert answer.result() == [pb.CREATED] * 2


def test_a_batch_that_does_not_get_the_lock_writes_nothing(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(LOCK_TIMEOUT="0.2")
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        with held_lock(database_url, organization):
            refusal = refused(org.stub.BatchUpsertAppointments, items(org, ("a", 0, 30)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "LOCK_TIMEOUT")
        assert org.changes() == []


def test_a_failure_of_the_database_is_not_a_refusal(place: Place, organization: str) -> None:
    """What the function raises is an internal error, and nothing is half done."""
    org = place.organization(organization).org
    with psycopg.connect(place.url) as connection:
        connection.execute(
            "ALTER TABLE appointment_history ADD CONSTRAINT broken CHECK (title <> 'broken')"
        )
    request = items(org, ("a", 0, 30), ("b", 30, 60))
    request.requests[1].appointment.title = "broken"
    error = refused(org.stub.BatchUpsertAppointments, request)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "broken" not in error.message
    assert (org.listed(), org.changes()) == ({}, [])
    assert outcomes(org, items(org, ("a", 0, 30), ("b", 30, 60))) == [pb.CREATED] * 2
