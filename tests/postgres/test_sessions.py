"""Databases, users and poolers whose presets conflict with the service's settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local.postgres import EmbeddedPostgres
from local.programs import ROOT, StartError
from local.stack import ANY_PORT, base_environment
from service.postgres.schema import connect
from service.postgres.session import (
    CALLER_ROLE,
    WORKER_ROLE,
    DatabaseUnfit,
    Timeouts,
)
from tests.api import Organization
from tests.conftest import OwnPostgres, StartProgram, postgres_starts
from tests.databases import Clusters
from tests.observing import until
from tests.postgres.test_migrations import rows, run_migrate

# None of these is the default of a new server.
PRESETS = {
    "search_path": "app",
    "client_encoding": "LATIN1",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Tokyo",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "row_security": "off",
    "client_min_messages": "error",
    "check_function_bodies": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "on",
    "jit": "on",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "idle_session_timeout": "1",
}
NO_TIMEOUTS = " ".join(f"-c {setting}=0" for setting in PRESETS if setting.endswith("_timeout"))
TIMEOUTS = Timeouts(connection=1, lock=2, statement=5)
SERVICE = health_pb2.HealthCheckRequest(service="appointments.v1.AppointmentService")


@pytest.fixture(scope="module")
def server(clusters: Clusters) -> Iterator[EmbeddedPostgres]:
    with postgres_starts(clusters) as start:
        yield start(migrated=False)


@pytest.fixture
def admin(server: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        yield connection


def own_database(server: EmbeddedPostgres, admin: psycopg.Connection, name: str) -> str:
    """The URL of a new database, whose owner may assume the service's roles."""
    admin.execute(f"CREATE ROLE {name} LOGIN")
    admin.execute(f"CREATE DATABASE {name} OWNER {name}")
    for role in (CALLER_ROLE, WORKER_ROLE):
        if not admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
            admin.execute(f"CREATE ROLE {role} NOLOGIN")
        admin.execute(f"GRANT {role} TO {name}")
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app")
        connection.execute(f"GRANT ALL ON SCHEMA app TO {name}")
    return server.url(name).replace("postgres@", f"{name}@")


def migrated(server: EmbeddedPostgres, admin: psycopg.Connection, name: str) -> str:
    url = own_database(server, admin, name)
    done = run_migrate(url)
    assert done.returncode == 0, done.stderr
    return url


def refused(start: StartProgram, **environment: str) -> str:
    """The one line of a program that does not start."""
    with pytest.raises(StartError) as caught:
        start(**environment)
    message = str(caught.value)
    assert "(exit code 1)" in message
    assert message.count("\n") == 0
    return message


@pytest.mark.parametrize("way", ["database", "role", "role_in_database", "url", "environment"])
def test_what_is_preset_changes_nothing(
    server: EmbeddedPostgres,
    admin: psycopg.Connection,
    start_service: StartProgram,
    start_worker: StartProgram,
    way: str,
) -> None:
    name = f"preset_by_{way}"
    url = own_database(server, admin, name)
    environment = {}
    match way:
        case "url":
            presets = " ".join(f"-c {setting}={value}" for setting, value in PRESETS.items())
            url = f"{url}&options={quote(presets)}"
        case "environment":
            presets = " ".join(f"-c {setting}={value}" for setting, value in PRESETS.items())
            environment = {"PGOPTIONS": presets, "PGCLIENTENCODING": "LATIN1"}
        case _:
            target = {
                "database": f"DATABASE {name}",
                "role": f"ROLE {name}",
                "role_in_database": f"ROLE {name} IN DATABASE {name}",
            }[way]
            for setting, value in PRESETS.items():
                admin.execute(f"ALTER {target} SET {setting} = '{value}'")
    # Timeouts in the URL apply to migrations.
    migrating = url.replace("_timeout%3D1", "_timeout%3D60000")
    done = run_migrate(
        migrating,
        PGOPTIONS=environment.get("PGOPTIONS", "").replace("_timeout=1", "_timeout=60000"),
    )
    assert done.returncode == 0, done.stderr
    tables = rows(
        f"{server.url(name)}&options={quote(NO_TIMEOUTS)}",
        "SELECT DISTINCT schemaname FROM pg_tables"
        " WHERE tablename IN ('appointments', 'webhooks', 'schema_migrations')",
    )
    assert tables == [("public",)]

    service = start_service(DATABASE_URL=url, **environment)
    start_worker(DATABASE_URL=url, **environment)
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), name)
        title = "Übung 한국어 🦷 \\n '"
        assert org.upsert("ä", 0, 1, title=title).outcome == pb.CREATED
        assert org.upsert("ä", 0, 1, title=title).outcome == pb.UNCHANGED
        assert org.get("ä").title == title
        [listed] = org.list_page().appointments
        assert listed == org.get("ä")
        assert org.refused("b", 0, 1).reason == "TIME_RANGE_CONFLICT"
        org.check_history()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_by_every_program(
    server: EmbeddedPostgres,
    admin: psycopg.Connection,
    database_url: str,
    start_service: StartProgram,
    start_worker: StartProgram,
    encoding: str,
) -> None:
    name = f"encoded_{encoding.lower()}"
    admin.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0"
        " LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    url = server.url(name)
    why = f"the encoding of the database {name} is {encoding}, not UTF8"
    migration = run_migrate(url)
    assert (migration.returncode, migration.stderr.count("\n")) == (1, 1)
    assert why in migration.stderr
    assert rows(url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    assert why in refused(start_service, DATABASE_URL=url)
    assert why in refused(start_worker, DATABASE_URL=url)
    message = refused(start_service, DATABASE_URL=database_url, DATABASE_READ_URL=url)
    assert why in message
    assert "of DATABASE_READ_URL" in message
    run = subprocess.run(
        [sys.executable, "-m", "local.run"],
        cwd=ROOT,
        env={**base_environment(), **ANY_PORT, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert why in run.stderr


def test_a_database_that_takes_no_writes_is_refused(
    server: EmbeddedPostgres,
    admin: psycopg.Connection,
    start_service: StartProgram,
    start_worker: StartProgram,
) -> None:
    url = migrated(server, admin, "frozen")
    admin.execute("ALTER DATABASE frozen SET default_transaction_read_only = on")
    why = "default_transaction_read_only is preset"
    assert why in refused(start_service, DATABASE_URL=url)
    assert why in refused(start_worker, DATABASE_URL=url)
    assert why in run_migrate(url).stderr


def test_a_user_who_may_not_take_the_role_is_refused_and_the_grant_named(
    server: EmbeddedPostgres,
    admin: psycopg.Connection,
    database_url: str,
    start_service: StartProgram,
    start_worker: StartProgram,
) -> None:
    url = migrated(server, admin, "ungranted")
    admin.execute('CREATE ROLE "booking login" LOGIN')
    login = url.replace("ungranted@", "booking%20login@")
    caller, worker = (f'GRANT {role} TO "booking login"' for role in (CALLER_ROLE, WORKER_ROLE))
    assert caller in refused(start_service, DATABASE_URL=login)
    assert caller in refused(start_service, DATABASE_URL=database_url, DATABASE_READ_URL=login)
    admin.execute(caller)
    start_service(DATABASE_URL=login, DATABASE_READ_URL=login)
    assert worker in refused(start_worker, DATABASE_URL=login)
    admin.execute(worker)
    start_worker(DATABASE_URL=login)


async def test_every_setting_is_both_sent_and_checked(
    server: EmbeddedPostgres, admin: psycopg.Connection
) -> None:
    url = own_database(server, admin, "checked")
    for setting, preset in PRESETS.items():
        if setting in {"check_function_bodies", "default_transaction_deferrable"}:
            continue  # of no effect on the service's statements
        value = "60000" if setting.endswith("_timeout") else preset
        session = await connect(url, TIMEOUTS, replica=False, role=CALLER_ROLE)
        await session.check()
        assert not session.pooled
        await session.execute(f"SET {setting} = '{value}'")
        with pytest.raises(DatabaseUnfit, match=setting):
            await session.check()
        assert session.closed


def test_each_new_connection_is_checked(
    server: EmbeddedPostgres, admin: psycopg.Connection, start_service: StartProgram
) -> None:
    """A setting that cannot be sent, since servers before 17 do not know it."""
    url = migrated(server, admin, "hasty")
    admin.execute("ALTER DATABASE hasty SET transaction_timeout = '5s'")
    message = refused(start_service, DATABASE_URL=url)
    assert "transaction_timeout=5000" in message
    assert """ALTER ROLE "hasty" SET transaction_timeout = '0';""" in message
    admin.execute("ALTER DATABASE hasty SET transaction_timeout = '6s'")
    service = start_service(DATABASE_URL=url, READ_CONNECTIONS="1", WRITE_CONNECTIONS="1")
    with grpc.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        sessions = "FROM pg_stat_activity WHERE datname = 'hasty'"

        def serving() -> bool:
            try:
                return bool(stub.Check(SERVICE).status == health_pb2.HealthCheckResponse.SERVING)
            except grpc.RpcError as error:  # not asked the database for the first time yet
                assert error.code() == grpc.StatusCode.NOT_FOUND
                return False

        until(serving)
        until(lambda: admin.execute(f"SELECT count(*) {sessions}").fetchone() == (2,))
        admin.execute("ALTER DATABASE hasty SET transaction_timeout = '5s'")
        admin.execute(f"SELECT pg_terminate_backend(pid, 5000) {sessions}")
        until(lambda: not serving())
        service.wait_for_event(lambda event: "transaction_timeout=5000" in event["event"])
        admin.execute("ALTER DATABASE hasty RESET transaction_timeout")
        until(serving)


@pytest.mark.parametrize(("name", "value"), [("PGTZ", "Asia/Tokyo"), ("PGDATESTYLE", "German")])
def test_a_variable_of_libpq_that_wins_is_named(
    start_service: StartProgram, name: str, value: str
) -> None:
    assert f"unset {name}" in refused(start_service, **{name: value})


def test_a_migration_waits_for_a_server_that_does_not_listen_yet(
    own_postgres: OwnPostgres,
) -> None:
    postgres = own_postgres(migrated=False)
    url = postgres.url("appointments")
    postgres.stop()
    at_once = run_migrate(url)
    assert at_once.returncode != 0
    assert at_once.stderr.count("\n") == 1
    with subprocess.Popen(
        [ROOT / "migrations" / "migrate", "--wait"],
        env={**base_environment(), "DATABASE_URL": url},
        stdout=subprocess.PIPE,
        text=True,
    ) as migration:
        assert migration.stdout is not None
        os.read(migration.stdout.fileno(), 1)  # it says that it waits
        assert migration.poll() is None
        postgres.start()
        output, _ = migration.communicate(timeout=60)
    assert migration.returncode == 0
    assert "Applied: " in output
