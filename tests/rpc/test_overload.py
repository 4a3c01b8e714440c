"""Queues are bounded: when they are full, requests are refused at once, unwritten."""

import statistics
import time

import grpc
import psycopg
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization, appointment, batch_request, upsert_request
from tests.conftest import StartProgram
from tests.observing import PATIENT, held_lock, metric, until
from tests.rest_client import Client

REFUSALS = 20
AT_ONCE = 0.01  # seconds


def check_at_once(durations: list[float]) -> None:
    """What else the machine does slows some of the refusals, never all of them."""
    assert min(durations) < AT_ONCE
    assert statistics.median(durations) < 10 * AT_ONCE


def test_beyond_the_queue_a_write_is_refused_at_once_and_leaves_nothing(
    start_service: StartProgram,
    start_gateway: StartProgram,
    database_url: str,
    organization: str,
) -> None:
    service = start_service(**PATIENT, MAX_QUEUED_WRITES="1000")
    batch = batch_request(appointment(organization, str(n), n, n + 1) for n in range(1000))
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        org = Organization(stub, organization)
        with held_lock(database_url, organization) as lock:
            first = stub.UpsertAppointment.future(upsert_request(organization, "first", -1))
            lock.wait_for(1)
            queued = stub.BatchUpsertAppointments.future(batch)
            until(lambda: metric(service, "appointments_queued_writes") == 1000)
            durations = []
            for _ in range(REFUSALS):
                started = time.perf_counter()
                refused = org.refused("beyond", -2, -1)
                durations.append(time.perf_counter() - started)
            assert (refused.code, refused.reason, refused.retry_after) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "OVERLOADED",
                1,
            )
            check_at_once(durations)
            client = Client(start_gateway(SERVICE_ADDRESS=service.address), organization)
            durations = []
            for _ in range(REFUSALS):
                started = time.perf_counter()
                answer = client.upsert("beyond")
                durations.append(time.perf_counter() - started)
                assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
            check_at_once(durations)
        assert first.result().outcome == pb.CREATED
        assert {result.outcome for result in queued.result().results} == {pb.CREATED}
        assert "beyond" not in org.listed()
        assert org.upsert("beyond", -2, -1).outcome == pb.CREATED


def test_beyond_the_queue_a_read_is_refused_at_once(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(
        **PATIENT, READ_CONNECTIONS="1", MAX_QUEUED_READS="1", CONNECTION_TIMEOUT="60"
    )
    request = rpc.ListAppointmentsRequest(organization_id=organization)
    with (
        grpc.insecure_channel(service.address) as channel,
        psycopg.connect(database_url) as locker,
    ):
        stub = AppointmentServiceStub(channel)
        stub.ListAppointments(request)
        locker.execute("LOCK TABLE organizations IN ACCESS EXCLUSIVE MODE")
        calls = [stub.ListAppointments.future(request) for _ in range(8)]
        until(lambda: sum(call.done() for call in calls) >= 5)
        codes = {call.code() for call in calls if call.done()}
        locker.rollback()
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        until(lambda: all(call.done() for call in calls))
        assert stub.ListAppointments(request).revision == 0


def test_one_organization_cannot_take_the_whole_queue(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT, MAX_QUEUED_WRITES="2000")
    batch = batch_request(appointment(organization, str(n), n, n + 1) for n in range(1000))
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        with held_lock(database_url, organization) as lock:
            first = stub.UpsertAppointment.future(upsert_request(organization, "first", -1))
            lock.wait_for(1)
            queued = stub.BatchUpsertAppointments.future(batch)
            until(lambda: metric(service, "appointments_queued_writes") == 1000)
            refused = Organization(stub, organization).refused("more", -2, -1)
            assert refused.reason == "OVERLOADED"
            other = Organization(stub, f"{organization}-other")
            assert other.upsert("a", 0, 1).outcome == pb.CREATED
        assert first.result().outcome == pb.CREATED
        assert len(queued.result().results) == 1000
