"""Callers that give up: by deadline, by cancelling, or because a lock is held too long."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.api import Organization, code_of, upsert_request
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, metric, metrics, until

IDLE_READERS = 'appointments_pool_connections{pool="read",state="idle"}'


def answered(service: Program) -> float:
    """Return the number of upserts that the service has finished, with any result."""
    count = 'appointments_request_seconds_count{code="'
    samples = metrics(service).items()
    return sum(n for name, n in samples if name.startswith(count) and "UpsertAppointment" in name)


def test_a_write_whose_deadline_passes_in_the_queue_never_happens(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        with held_lock(database_url, organization) as lock:
            first = stub.UpsertAppointment.future(upsert_request(organization, "first", 0))
            lock.wait_for(1)
            late = stub.UpsertAppointment.future(
                upsert_request(organization, "late", 1), timeout=0.3
            )
            patient = stub.UpsertAppointment.future(upsert_request(organization, "patient", 2))
            assert code_of(late) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert first.result().outcome == patient.result().outcome == pb.CREATED
        org = Organization(stub, organization)
        assert set(org.listed()) == {"first", "patient"}
        org.check_history()


def test_a_write_that_is_cancelled_in_the_queue_never_happens(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        with held_lock(database_url, organization) as lock:
            first = stub.UpsertAppointment.future(upsert_request(organization, "first", 0))
            lock.wait_for(1)
            unwanted = stub.UpsertAppointment.future(upsert_request(organization, "unwanted", 1))
            until(lambda: metric(service, "appointments_queued_writes") == 1)
            unwanted.cancel()
            until(lambda: answered(service) == 1)
        assert first.result().outcome == pb.CREATED
        assert set(Organization(stub, organization).listed()) == {"first"}


@pytest.mark.parametrize("ending", ["deadline", "cancel"])
def test_a_write_in_flight_is_finished_and_its_retry_gets_the_same_result(
    start_service: StartProgram, database_url: str, organization: str, ending: str
) -> None:
    """A caller whose deadline expired learns the result by sending the write again."""
    service = start_service(**PATIENT)
    request = upsert_request(organization, "a", 0)
    request.idempotency_key = "k"
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        with held_lock(database_url, organization) as lock:
            timeout = 0.3 if ending == "deadline" else None
            call = stub.UpsertAppointment.future(request, timeout=timeout)
            lock.wait_for(1)
            if ending == "deadline":
                assert code_of(call) == grpc.StatusCode.DEADLINE_EXCEEDED
            else:
                call.cancel()
            until(lambda: answered(service) == 1)
            assert lock.waiting() == 1, "the batch is not given up"
        again = stub.UpsertAppointment(request)
        assert (again.outcome, again.appointment.version) == (pb.CREATED, 1)
        org = Organization(stub, organization)
        org.check_history()
        assert len(org.changes()) == 1


def test_without_a_callers_deadline_the_services_own_holds(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT, REQUEST_TIMEOUT="0.3")
    with (
        grpc.insecure_channel(service.address) as channel,
        held_lock(database_url, organization),
    ):
        refused = Organization(AppointmentServiceStub(channel), organization).refused("a", 0, 1)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
    )


def test_a_lock_that_is_held_too_long_is_an_error_that_leaves_nothing(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(LOCK_TIMEOUT="0.2")
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        with held_lock(database_url, organization):
            refused = org.refused("a", 0, 1)
        assert (refused.code, refused.reason, refused.retry_after) == (
            grpc.StatusCode.UNAVAILABLE,
            "LOCK_TIMEOUT",
            1,
        )
        assert org.changes() == []
        assert org.upsert("a", 0, 1).outcome == pb.CREATED


def test_reads_that_are_given_up_leak_no_connection(
    start_service: StartProgram, organization: str
) -> None:
    """Deadlines of every length, so that some pass at each step of a read."""
    service = start_service()
    request = rpc.ListAppointmentsRequest(organization_id=organization)
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(16) as pool:
        stub = AppointmentServiceStub(channel)

        def read(number: int) -> None:
            call = stub.ListAppointments.future(request, timeout=number % 30 / 1000 + 0.001)
            if number % 3 == 0:
                call.cancel()
            with suppress(grpc.FutureCancelledError):
                call.exception()

        list(pool.map(read, range(6000)))
        until(lambda: metric(service, 'appointments_pool_waiting{pool="read"}') == 0)
        until(lambda: metric(service, IDLE_READERS) == 4)
        assert stub.ListAppointments(request, timeout=10).revision == 0
