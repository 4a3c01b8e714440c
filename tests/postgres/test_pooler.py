"""PgBouncer in transaction mode, with fewer connections to the server than clients."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import LiteralString

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import webhook_service_pb2 as hooks
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from appointments.v1.webhook_service_pb2_grpc import WebhookServiceStub
from psycopg import sql

from local.pgbouncer import PgBouncer, pgbouncer_program
from local.postgres import EmbeddedPostgres
from local.programs import Program
from local.stack import DATABASE
from service.errors import DatabaseUnavailable
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.schema import connect
from service.postgres.session import CALLER_ROLE, WORKER_ROLE, Session, Timeouts
from tests.api import TIMEOUT, Organization, appointment, batch_request, refused, soon
from tests.commands import run_command
from tests.conftest import StartProgram, listening, postgres_starts
from tests.databases import Clusters, temporary_data_directory
from tests.observing import until
from tests.operations.submissions import Submissions, response_of
from tests.postgres.test_migrations import run_migrate
from tests.postgres.test_sessions import refused as refused_to_start
from tests.receiver import Receiver
from tests.webhooks.hooked import QUICK

# Connections of the pooler to the server, for each user; each program has more of its own.
CONNECTIONS = 2
CLIENTS = 12
LOGIN = "booking"
TIMEOUTS = Timeouts(connection=5, lock=2, statement=5)
# What a rude client leaves behind on the connections that it used.
RUDE = {
    "search_path": "pg_catalog",
    "statement_timeout": "1h",
    "lock_timeout": "1h",
    "TimeZone": "Asia/Tokyo",
    "DateStyle": "German",
    "bytea_output": "escape",
    "synchronous_commit": "off",
    "plan_cache_mode": "force_custom_plan",
    "appointments.organization": "another",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """A server with a migrated database, and a pooler in front of it."""

    server: EmbeddedPostgres
    pooler: PgBouncer

    @property
    def url(self) -> str:
        return self.pooler.url(DATABASE, LOGIN)

    @property
    def owner(self) -> str:
        return self.pooler.url(DATABASE, "postgres")

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement of an administrator on the server itself."""
        with psycopg.connect(self.server.url(DATABASE), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def state(self, url: str) -> list[tuple[object, ...]]:
        """Return what each connection to the server has: settings and prepared statements.

        Without those that the pooler has named, as it keeps the ones of its clients apart.
        All are in a transaction at the same time, so that none is seen twice.
        """
        with ExitStack() as stack:
            connections = [
                stack.enter_context(psycopg.connect(url, prepare_threshold=None))
                for _ in range(CONNECTIONS)
            ]
            found = [
                connection.execute(
                    "SELECT (SELECT json_object_agg(name, setting ORDER BY name)::text"
                    " FROM pg_settings WHERE name = ANY(%s)), current_user::text,"
                    " coalesce(current_setting('appointments.organization', true), ''),"
                    " (SELECT count(*) FROM pg_prepared_statements"
                    "  WHERE name NOT LIKE 'PGBOUNCER%%'),"
                    " pg_backend_pid()",
                    ([*RUDE, "enable_seqscan", "jit", "client_min_messages"],),
                ).fetchone()
                for connection in connections
            ]
        assert len({row[-1] for row in found if row}) == CONNECTIONS
        return [row[:-1] for row in found if row]


@pytest.fixture(scope="module")
def pooled(clusters: Clusters) -> Iterator[Pooled]:
    """Left out where PgBouncer is not installed; where CI is set it fails."""
    if pgbouncer_program() is None and not os.environ.get("CI"):
        pytest.skip("PgBouncer is not installed (Debian and Ubuntu: apt install pgbouncer)")
    with postgres_starts(clusters) as start, temporary_data_directory() as directory:
        directory.chmod(0o711)
        server = start()
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE {LOGIN} LOGIN".encode())
            admin.execute(f"GRANT {WORKER_ROLE} TO {LOGIN}".encode())
        pooler = PgBouncer(directory / "pooler", server.url(), connections=CONNECTIONS)
        with pooler:
            yield Pooled(server=server, pooler=pooler)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that the pooler's user can reach."""
    with temporary_data_directory() as directory:
        directory.chmod(0o711)
        yield directory


@pytest.fixture(scope="module")
def service(pooled: Pooled, fork: StartProgram) -> Iterator[Program]:
    with ExitStack() as stack:
        settings = {"DATABASE_URL": pooled.url, "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
        yield listening(stack, fork("service", settings))


@pytest.fixture(scope="module")
def channel(service: Program) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.address) as channel:
        yield channel


@pytest.fixture
def worker(pooled: Pooled, start_worker: StartProgram) -> Program:
    return start_worker(DATABASE_URL=pooled.url, **QUICK)


def keeps_statements_apart() -> bool:
    version = subprocess.check_output([pgbouncer_program() or "", "--version"], text=True)
    return [int(part) for part in version.split()[1].split(".")[:2]] >= [1, 24]


def calls_of_every_kind(channel: grpc.Channel, id: str, receiver: Receiver) -> None:
    """Make the calls of one organization, and check every answer."""
    submissions = Submissions(channel, id)
    org = submissions.org
    webhook = WebhookServiceStub(channel).CreateWebhook(
        hooks.CreateWebhookRequest(
            webhook=hooks.Webhook(organization_id=id, url=receiver.url(f"/{id}"))
        ),
        timeout=TIMEOUT,
    )
    assert webhook.webhook.organization_id == id
    assert org.upsert("a", 0, 30, title=id, idempotency_key="k").outcome == pb.CREATED
    assert org.upsert("a", 0, 30, title=id, idempotency_key="k").outcome == pb.CREATED
    refusal = org.refused("b", 10, 20)
    assert (refusal.reason, [each.id for each in refusal.conflicts]) == (
        "TIME_RANGE_CONFLICT",
        ["a"],
    )
    assert org.upsert("held", 30, 60, hold_until=soon(600)).appointment.state == pb.Appointment.HELD
    assert org.confirm("held").outcome == pb.CONFIRMED
    batch = batch_request([appointment(id, "a", 30, 60), appointment(id, "held", 0, 30)])
    batch.atomic = True
    outcomes = [each.outcome for each in org.stub.BatchUpsertAppointments(batch).results]
    assert outcomes == [pb.UPDATED] * 2
    batch = batch_request([appointment(id, "c", 90, 95), appointment(id, "d", 31, 32)])
    batch.atomic = True
    assert refused(org.stub.BatchUpsertAppointments, batch).reason == "BATCH_REFUSED"
    accepted = [submissions.upsert(f"e{number}", 100 + number, 101 + number) for number in range(3)]
    for operation in accepted:
        assert response_of(submissions.wait(operation)).organization_id == id
    assert org.update("a", {"title": "changed"}).outcome == pb.UPDATED
    assert org.cancel("held").outcome == pb.CANCELLED
    assert org.get("a").title == "changed"
    assert org.get("a", as_of_revision=1).title == id
    assert set(org.listed()) == {"a", "held", "e0", "e1", "e2"}
    assert {each.organization_id for each in org.listed().values()} == {id}
    org.check_history()
    last = org.changes()[-1].revision
    until(lambda: {each.revision for each in receiver.at(f"/{id}")} >= {*range(1, last + 1)})


def test_calls_of_every_kind_share_few_connections(
    pooled: Pooled, channel: grpc.Channel, worker: Program, organization: str
) -> None:
    before = pooled.state(pooled.url)
    start = Barrier(CLIENTS)

    def calls(number: int) -> None:
        start.wait(TIMEOUT)
        calls_of_every_kind(channel, f"{organization[-36:]}-{number}", receiver)

    with Receiver() as receiver, ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(calls, range(CLIENTS)))
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'booking'"
    until(lambda: pooled.execute(sessions) == [(CONNECTIONS,)])
    assert pooled.state(pooled.url) == before
    checked = run_command(pooled.url, "verify")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("sound: ")
    assert pooled.state(pooled.url) == before


def test_what_other_clients_leave_behind_changes_nothing(
    pooled: Pooled, channel: grpc.Channel, organization: str
) -> None:
    org = Organization(AppointmentServiceStub(channel), organization)
    try:
        with ExitStack() as stack:
            clients = [
                stack.enter_context(psycopg.connect(pooled.url, prepare_threshold=None))
                for _ in range(CONNECTIONS)
            ]
            for client in clients:
                client.execute(f"SET ROLE {WORKER_ROLE}".encode())
                for name, value in RUDE.items():
                    client.execute(sql.SQL("SET {} = {}").format(sql.SQL(name), value))
            for client in clients:
                client.commit()
        [(_, role, left, _), *_] = pooled.state(pooled.url)
        assert (role, left) == (WORKER_ROLE, "another")
        assert org.upsert("ä", 0, 30, attributes={"x": 1}).outcome == pb.CREATED
        assert org.upsert("ä", 0, 30, attributes={"x": 1}).outcome == pb.UNCHANGED
        assert org.refused("b", 10, 20).reason == "TIME_RANGE_CONFLICT"
        assert list(org.listed()) == ["ä"]
        org.check_history()
    finally:
        pooled.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'booking'"
        )


async def test_a_statement_keeps_no_connection_of_the_server(
    pooled: Pooled, directory: Path
) -> None:
    settings = {"admin_users": LOGIN}
    server = pooled.server.url()
    with PgBouncer(directory / "p", server, connections=CONNECTIONS, settings=settings) as pooler:
        console = psycopg.pq.PGconn.connect(pooler.url("pgbouncer", LOGIN).encode())

        def is_free() -> bool:
            pools = console.exec_(b"SHOW POOLS")
            column = [pools.fname(number) for number in range(pools.nfields)].index(b"sv_active")
            return all(pools.get_value(row, column) == b"0" for row in range(pools.ntuples))

        url = pooler.url(DATABASE, LOGIN)
        async with await connect(url, TIMEOUTS, replica=False, role=CALLER_ROLE) as session:
            await session.check()
            for _ in range(1000):
                assert await session.fetch("SELECT 1") == [(1,)]
                await asyncio.to_thread(until, is_free, within=5)
        console.finish()


@pytest.mark.parametrize("settings", [{}, {"ignore_startup_parameters": "options"}])
async def test_a_pooler_is_found_whether_it_refuses_or_ignores_options(
    pooled: Pooled, directory: Path, settings: dict[str, str]
) -> None:
    pooler = PgBouncer(
        directory / "p", pooled.server.url(), connections=CONNECTIONS, settings=settings
    )

    async def found(session: Session) -> tuple[object, ...]:
        [row] = await session.fetch(
            "SELECT current_user::text, current_setting('search_path'),"
            " current_setting('statement_timeout'), current_setting('plan_cache_mode')"
        )
        return row

    with pooler:
        for number in range(2 * CONNECTIONS):
            role = (CALLER_ROLE, WORKER_ROLE)[number % 2]
            url = pooler.url(DATABASE, LOGIN)
            async with await connect(url, TIMEOUTS, replica=False, role=role) as session:
                await session.check()
                assert session.pooled
                assert await found(session) == (role, "own, public", "5s", "force_generic_plan")
                left = await (await session.execute("SHOW search_path")).fetchone()
                assert left == ('"$user", public',)
    async with await connect(
        pooled.server.url(DATABASE), TIMEOUTS, replica=False, role=CALLER_ROLE
    ) as direct:
        await direct.check()
        assert not direct.pooled


async def test_statements_are_prepared_only_if_the_pooler_keeps_them_apart(pooled: Pooled) -> None:
    """PgBouncer 1.24 and later do so by default, 1.21 and later by a setting."""
    before = pooled.state(pooled.url)
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(
                await connect(pooled.url, TIMEOUTS, replica=False, role=CALLER_ROLE)
            )
            for _ in range(2 * CONNECTIONS)
        ]
        for session in sessions:
            await session.check()
            assert (session.prepare_threshold is not None) == keeps_statements_apart()
        # Each session gives the same name to a statement of its own.
        for turn in range(20):
            await asyncio.gather(
                *(
                    _returns(session, f"SELECT %s || ' of {number}'", f"{turn} of {number}")
                    for number, session in enumerate(sessions)
                )
            )
    assert pooled.state(pooled.url) == before


async def _returns(session: Session, statement: LiteralString, expected: str) -> None:
    assert await session.fetch(statement, (expected.partition(" ")[0],)) == [(expected,)]


async def test_a_failed_statement_leaves_nothing(pooled: Pooled) -> None:
    async with await connect(pooled.url, TIMEOUTS, replica=False, role=CALLER_ROLE) as session:
        await session.check()
        for statement in ("SELECT 1 / 0", "SELECT * FROM public.appointments"):
            with pytest.raises(psycopg.Error):
                await session.fetch(statement)
        [(user,)] = await session.fetch("SELECT current_user::text")
        assert user == CALLER_ROLE
        left = await (await session.execute("SELECT current_user::text")).fetchone()
        assert left == (LOGIN,)


async def test_a_pooler_that_hangs_delays_no_caller_and_is_used_again(
    pooled: Pooled, directory: Path
) -> None:
    with PgBouncer(directory / "p", pooled.server.url(), connections=1) as pooler:
        database = Database(
            pooler.url(DATABASE, LOGIN),
            name="test",
            connections=1,
            max_waiting=1,
            timeouts=Timeouts(connection=1, lock=0.1, statement=0.1),
            role=CALLER_ROLE,
            replica=False,
            metrics=Metrics(),
        )
        async with database:
            assert await database.fetch_across("SELECT 1") == [(1,)]
            os.kill(pooler.pid, signal.SIGSTOP)
            try:
                with pytest.raises(DatabaseUnavailable, match="does not respond"):
                    await database.fetch_across("SELECT 1")
            finally:
                os.kill(pooler.pid, signal.SIGCONT)
            assert await database.fetch_across("SELECT 1") == [(1,)]


def test_what_a_transaction_cannot_set_is_named_at_the_start(
    pooled: Pooled, directory: Path, start_service: StartProgram, start_worker: StartProgram
) -> None:
    pooled.execute("CREATE ROLE preset LOGIN")
    pooled.execute("ALTER ROLE preset SET default_transaction_isolation = 'serializable'")
    with PgBouncer(directory / "p", pooled.server.url(), connections=1) as pooler:
        url = pooler.url(DATABASE, "preset")
        message = refused_to_start(start_service, DATABASE_URL=url)
        assert f'GRANT {CALLER_ROLE} TO "preset"' in message
        pooled.execute(f"GRANT {CALLER_ROLE} TO preset")
        message = refused_to_start(start_service, DATABASE_URL=url)
        assert "the connection has default_transaction_isolation=serializable" in message
        [statement] = re.findall(r"ALTER ROLE .+?;", message)
        pooled.execute(statement)
        message = refused_to_start(start_worker, DATABASE_URL=url)
        assert f'GRANT {WORKER_ROLE} TO "preset"' in message
        # The pooler has connections from before the statement.
        pooled.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'preset'"
        )
        start_service(DATABASE_URL=url)


def test_a_worker_polls_and_does_not_listen(pooled: Pooled, worker: Program) -> None:
    worker.wait_for_event(lambda event: "a pooler is between" in str(event.get("error")))
    listening = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    assert pooled.execute(listening) == []


def test_commands_that_need_a_session_refuse_a_pooler(pooled: Pooled) -> None:
    why = "a pooler is between this program and the server"
    for done in (
        run_migrate(pooled.owner),
        run_command(pooled.owner, "purge", "nobody", "--yes-delete", "nobody"),
        run_command(pooled.owner, "new-epoch"),
    ):
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert why in done.stderr
    assert pooled.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'") == []


def test_keys_are_made_and_read_through_it(
    pooled: Pooled, start_service: StartProgram, organization: str
) -> None:
    before = [pooled.state(url) for url in (pooled.owner, pooled.url)]
    created = run_command(
        pooled.owner,
        *("keys", "create", "--subject", "s", "--organization", organization),
        *("--scope", "appointments.read", "--scope", "appointments.write"),
    )
    assert created.returncode == 0, created.stderr
    token = ("authorization", f"Bearer {created.stdout.strip()}")
    guarded = start_service(DATABASE_URL=pooled.url, ACCESS_CONTROL="on")
    with grpc.insecure_channel(guarded.address) as channel:
        stub = AppointmentServiceStub(channel)

        def upsert(organization: str, *metadata: tuple[str, str]) -> Callable[[], object]:
            request = batch_request([appointment(organization, "a", 0, 30)])
            return lambda: stub.BatchUpsertAppointments(request, metadata=metadata, timeout=TIMEOUT)

        assert upsert(organization, token)()
        assert refused(upsert(organization)).code == grpc.StatusCode.UNAUTHENTICATED
        assert refused(upsert("other", token)).code == grpc.StatusCode.PERMISSION_DENIED
    assert [pooled.state(url) for url in (pooled.owner, pooled.url)] == before


def test_lost_connections_to_the_server_are_replaced(
    pooled: Pooled, channel: grpc.Channel, organization: str
) -> None:
    org = Organization(AppointmentServiceStub(channel), organization)
    org.upsert("a", 0, 30)
    pooled.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'booking'"
    )

    def answers() -> bool:
        try:
            return org.get("a").id == "a"
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            return False

    until(answers)
    org.check_history()
