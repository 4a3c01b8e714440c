"""A database that becomes unavailable, returns, hangs, or does not confirm its commits."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any, LiteralString

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local.stack import DATABASE
from service.domain import WriteResult
from service.errors import DatabaseUnavailable
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row
from service.rpc.write_requests import WriteReader
from service.writes.store import WriteStore
from tests.api import Organization, Refusal, refusal, upsert_request
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.databases import database_of
from tests.load import Load
from tests.observing import PATIENT, held_lock, until


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


def test_a_database_that_hangs_is_noticed_and_let_go(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    """Every backend is stopped: connections stay open, but nothing responds."""
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
    """A cancelled wait for a synchronous standby ends with only a warning."""
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
            """The server applies the setting with a delay, so some writes still succeed."""
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


def test_a_commit_that_no_standby_has_confirmed_is_not_visible(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    """Nothing is answered on the basis of what a failover would take away."""
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(DATABASE_URL=url, STATEMENT_TIMEOUT="0.3", LOCK_TIMEOUT="0.2")
    with (
        grpc.insecure_channel(service.address) as channel,
        psycopg.connect(url, autocommit=True) as admin,
    ):
        org = Organization(AppointmentServiceStub(channel), organization)
        admin.execute("SET synchronous_commit = local")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        until(lambda: admin.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",))
        # The service's sessions apply the setting with a delay, so some writes may still succeed.
        for minute in count():
            try:
                org.upsert(str(minute), minute, minute + 1)
            except grpc.RpcError as error:
                refused = refusal(error)
                break
        assert refused.reason == "DATABASE_UNAVAILABLE"
        assert "not known" in refused.message
        for _ in range(3):
            # A repetition cannot be UNCHANGED, and no reader sees it.
            assert org.refused(str(minute), minute, minute + 1).reason == "LOCK_TIMEOUT"
            assert len(org.changes()) == minute
            assert str(minute) not in org.listed()
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")
        until(lambda: str(minute) in org.listed())
        assert org.upsert(str(minute), minute, minute + 1).outcome == pb.UNCHANGED


class FaultyDatabase(Database):
    """A real database in which calls fail by their number, from 1."""

    faults: dict[int, psycopg.Error]
    calls = 0

    async def fetch_across(
        self,
        statement: LiteralString,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        raw: bool = False,
    ) -> list[Row]:
        self.calls += 1
        if self.calls in self.faults:
            raise self.faults[self.calls]
        return await super().fetch_across(statement, parameters, raw=raw)


async def test_what_was_written_one_by_one_keeps_its_result_when_a_later_one_fails(
    database_url: str, stub: AppointmentServiceStub, organization: str
) -> None:
    """The batch is refused. One by one, the first is written; the second's end is unknown."""
    metrics = Metrics()
    database = database_of(FaultyDatabase, database_url, metrics)
    unreadable = psycopg.DataError("a row that cannot be read")
    database.faults = {1: psycopg.errors.CheckViolation("one of them"), 3: unreadable}
    writes = [
        WriteReader(timedelta(days=1)).read(upsert_request(organization, id, minute), actor="")
        for minute, id in enumerate("abc")
    ]
    async with database:
        first, second, third = await WriteStore(database, metrics, lambda: None).apply(
            organization, writes
        )
    assert isinstance(first, WriteResult)
    assert second is unreadable
    assert isinstance(third, DatabaseUnavailable)
    assert "nothing was written" in third.message
    assert set(Organization(stub, organization).listed()) == {"a"}


# What PostgreSQL raises if a migration replaces a function in the middle of a statement.
_REPLACED: LiteralString = """
    CREATE SEQUENCE calls;
    GRANT USAGE ON SEQUENCE calls TO appointments_caller;
    CREATE FUNCTION replaced(times integer) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        call bigint := nextval('public.calls');
    BEGIN
        IF call <= times THEN
            RAISE 'cache lookup failed for function 17334' USING ERRCODE = 'internal_error';
        END IF;
        RETURN call;
    END
    $$;
"""


async def test_a_statement_whose_function_is_replaced_runs_again(
    create_database: CreateDatabase,
) -> None:
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_REPLACED)
    async with database_of(Database, url, Metrics()) as database:
        found = await database.fetch_across("SELECT public.replaced(%s)", [1])
        assert found == [(2,)]
        # Once: a function that is really missing stays an error.
        with pytest.raises(psycopg.errors.InternalError_):
            await database.fetch_across("SELECT public.replaced(%s)", [4])
