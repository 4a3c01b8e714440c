"""Deadlines, cancellations, overload, shutdown, and a database that goes away."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from typing import Any, Self

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from scripts.postgres import EmbeddedPostgres
from scripts.programs import Program
from scripts.stack import DATABASE
from tests.api import Organization, Refusal, appointment, refusal
from tests.observing import held_lock, metric, until

StartProgram = Callable[..., Program]
OwnPostgres = Callable[..., EmbeddedPostgres]
IDLE_READERS = 'appointments_pool_connections{pool="read",state="idle"}'
ANSWERED = 'appointments_request_seconds_count{method="UpsertAppointment"}'
PATIENT = {"LOCK_TIMEOUT": "60", "STATEMENT_TIMEOUT": "60"}


def upsert_request(organization: str, id: str, minute: int) -> rpc.UpsertAppointmentRequest:
    return rpc.UpsertAppointmentRequest(
        appointment=appointment(organization, id, minute, minute + 1)
    )


def code_of(call: Any) -> grpc.StatusCode:
    error = call.exception(timeout=30)
    assert isinstance(error, grpc.RpcError), error
    code: grpc.StatusCode = call.code()
    return code


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
            until(lambda: metric(service, ANSWERED) == 1)
        assert first.result().outcome == pb.CREATED
        assert set(Organization(stub, organization).listed()) == {"first"}


@pytest.mark.parametrize("ending", ["deadline", "cancel"])
def test_a_write_in_flight_is_finished_and_its_retry_gets_the_same_result(
    start_service: StartProgram, database_url: str, organization: str, ending: str
) -> None:
    """The caller gives up; what became of the write it learns by asking again."""
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
            until(lambda: metric(service, ANSWERED) == 1)
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


def test_beyond_the_queue_a_write_is_refused_at_once_and_leaves_nothing(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT, MAX_QUEUED_WRITES="1000")
    item = rpc.BatchUpsertAppointmentsRequest.Item
    batch = rpc.BatchUpsertAppointmentsRequest(
        requests=[
            item(appointment=appointment(organization, str(n), n, n + 1)) for n in range(1000)
        ]
    )
    with grpc.insecure_channel(service.address) as channel:
        stub = AppointmentServiceStub(channel)
        org = Organization(stub, organization)
        with held_lock(database_url, organization) as lock:
            first = stub.UpsertAppointment.future(upsert_request(organization, "first", -1))
            lock.wait_for(1)
            queued = stub.BatchUpsertAppointments.future(batch)
            until(lambda: metric(service, "appointments_queued_writes") == 1000)
            started = time.perf_counter()
            refused = org.refused("beyond", -2, -1)
            seconds = time.perf_counter() - started
            assert (refused.code, refused.reason, refused.retry_after) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "OVERLOADED",
                1,
            )
            assert seconds < 1
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


class Load:
    """Writers that go on until told to stop, and remember every answer."""

    def __init__(self, address: str, organization: str, writers: int = 8) -> None:
        self.accepted: list[str] = []
        self.failed: list[tuple[str, grpc.StatusCode]] = []
        self._address = address
        self._organization = organization
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(writers)
        self._writers = [self._pool.submit(self._write, n) for n in range(writers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def stop(self) -> None:
        """Stop, and fail with what a writer failed with."""
        self._stop.set()
        for writer in self._writers:
            writer.result()

    def _write(self, writer: int) -> None:
        with grpc.insecure_channel(self._address) as channel:
            org = Organization(AppointmentServiceStub(channel), self._organization)
            number = 0
            while not self._stop.is_set():
                number += 1
                id = f"{writer}-{number}"
                try:
                    org.upsert(id, 0, 1, resource_id=id)
                except grpc.RpcError as error:
                    self.failed.append((id, error.code()))
                    if error.code() == grpc.StatusCode.UNAVAILABLE:
                        self._stop.wait(0.02)
                else:
                    self.accepted.append(id)


def test_sigterm_under_load_fails_no_call_that_was_accepted(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service()
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 500)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=20) == 0
        load.stop()
    org = Organization(stub, organization)
    stored = set(org.listed(page_size=1000))
    # Answered: stored. Failed: not stored, so the service had never accepted it.
    assert stored == set(load.accepted)
    # CANCELLED is grpc's answer to a call that reaches a server which has begun to stop.
    codes = {code for _, code in load.failed}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    org.check_history()


def test_sigint_ends_it_with_code_0_too(start_service: StartProgram) -> None:
    service = start_service()
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(timeout=20) == 0


def test_a_killed_service_loses_no_answered_write(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service()
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 300)
        service.kill()
        load.stop()
    org = Organization(stub, organization)
    assert set(load.accepted) <= set(org.listed(page_size=1000))
    org.check_history()


@pytest.mark.parametrize("immediate", [True, False], ids=["crash", "restart"])
def test_the_database_away_and_back(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str, immediate: bool
) -> None:
    postgres = own_postgres()
    service = start_service(DATABASE_URL=postgres.url(DATABASE))
    with (
        grpc.insecure_channel(service.address) as channel,
        Load(service.address, organization) as load,
    ):
        org = Organization(AppointmentServiceStub(channel), organization)
        until(lambda: len(load.accepted) > 200)
        postgres.stop(immediate=immediate)
        until(lambda: len(load.failed) > 20)
        started = time.perf_counter()
        refused = org.refused("away", 0, 1)
        assert time.perf_counter() - started < 3, "503 must come quickly"
        assert (refused.code, refused.reason, refused.retry_after) == (
            grpc.StatusCode.UNAVAILABLE,
            "DATABASE_UNAVAILABLE",
            1,
        )
        with pytest.raises(grpc.RpcError) as caught:
            org.list_page()
        assert refusal(caught.value).reason == "DATABASE_UNAVAILABLE"
        before = len(load.accepted)
        postgres.start()
        started = time.perf_counter()
        until(lambda: len(load.accepted) > before)
        assert time.perf_counter() - started < 5, "it must be of service again by itself"
        load.stop()
        assert set(load.accepted) <= set(org.listed(page_size=1000))
        assert {code for _, code in load.failed} == {grpc.StatusCode.UNAVAILABLE}
        org.check_history()


def test_idle_connections_that_the_server_closed_fail_no_request(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    postgres = own_postgres()
    service = start_service(DATABASE_URL=postgres.url(DATABASE))
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        org.upsert("before", 0, 1)
        with psycopg.connect(postgres.url(DATABASE), autocommit=True) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'appointments'"
            ).fetchall()
        assert len(ended) >= 2
        assert org.upsert("after", 1, 2).outcome == pb.CREATED
        assert len(org.list_page().appointments) == 2


def test_a_connection_lost_in_flight_leaves_the_result_open_and_says_so(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(DATABASE_URL=url, **PATIENT)
    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(1) as pool:
        org = Organization(AppointmentServiceStub(channel), organization)
        with held_lock(url, organization) as lock:
            write = pool.submit(org.refused, "a", 0, 1)
            lock.wait_for(1)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE locktype = 'advisory' AND NOT granted"
                )
            refused: Refusal = write.result()
        assert refused.reason == "DATABASE_UNAVAILABLE"
        assert "not known" in refused.message
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


def test_a_database_that_hangs_is_noticed_and_let_go(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    """Every backend is stopped: connections stay open, nothing answers."""
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(
        DATABASE_URL=url, LOCK_TIMEOUT="0.5", STATEMENT_TIMEOUT="0.5", CONNECTION_TIMEOUT="0.5"
    )
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="appointments.v1.AppointmentService")

        def serving() -> bool:
            return bool(health.Check(request).status == health_pb2.HealthCheckResponse.SERVING)

        org.upsert("before", 0, 1)
        until(serving)
        with psycopg.connect(url) as connection:
            pids = [
                pid
                for (pid,) in connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name = 'appointments'"
                )
            ]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            refused = org.refused("during", 1, 2)
            assert refused.reason == "DATABASE_UNAVAILABLE"
            assert "not known" in refused.message
            until(lambda: not serving())
            started = time.perf_counter()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(timeout=30) == 0
            assert time.perf_counter() - started < 20
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def test_a_commit_that_no_standby_has_confirmed_is_not_called_a_success(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    """A cancelled wait for a synchronous standby ends with a mere warning."""
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(DATABASE_URL=url)
    with (
        grpc.insecure_channel(service.address) as channel,
        psycopg.connect(url, autocommit=True) as admin,
        ThreadPoolExecutor(1) as pool,
    ):
        org = Organization(AppointmentServiceStub(channel), organization)

        def write_until_refused() -> tuple[int, Refusal]:
            """The server takes up the setting in its own time, so some still succeed."""
            for minute in count():
                try:
                    org.upsert(str(minute), minute, minute + 1)
                except grpc.RpcError as error:
                    return minute, refusal(error)
            raise AssertionError

        admin.execute("SET synchronous_commit = local")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        writer = pool.submit(write_until_refused)
        waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: admin.execute(f"SELECT pid {waiting}").fetchone() is not None)
        admin.execute(f"SELECT pg_cancel_backend(pid) {waiting}")
        minute, refused = writer.result()
        assert refused.reason == "DATABASE_UNAVAILABLE"
        assert "not known" in refused.message
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")
        assert org.upsert(str(minute), minute, minute + 1).outcome == pb.UNCHANGED


def test_one_organization_cannot_take_the_whole_queue(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT, MAX_QUEUED_WRITES="2000")
    item = rpc.BatchUpsertAppointmentsRequest.Item
    batch = rpc.BatchUpsertAppointmentsRequest(
        requests=[
            item(appointment=appointment(organization, str(n), n, n + 1)) for n in range(1000)
        ]
    )
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
