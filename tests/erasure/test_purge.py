"""`python -m service purge` removes one organization and nothing else."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import ROOT, Program
from local.rabbitmq import RabbitMQ
from local.stack import base_environment
from service.erasure import organization as purging
from service.erasure.organization import TABLES, purge_organization
from service.events.rabbitmq import routing_key
from service.postgres.schema import NEEDED_MIGRATIONS
from service.postgres.session import Timeouts
from tests.api import Organization, appointment, batch_request, refused
from tests.conftest import CreateDatabase, StartProgram
from tests.events.consumer import Consumer
from tests.observing import held_lock, until
from tests.operations.submissions import Submissions
from tests.receiver import LOOPBACK
from tests.rest_client import Client

WORD = "zqpurgedxw"
TIMEOUTS = Timeouts(connection=5, lock=2, statement=30)


@pytest.fixture(scope="module")
def url(create_database: CreateDatabase) -> str:
    return create_database()


@pytest.fixture
def own_service(start_service: StartProgram, url: str) -> Program:
    return start_service(DATABASE_URL=url, WEBHOOK_ALLOWED_NETWORKS=LOOPBACK)


@pytest.fixture
def channel(own_service: Program) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(own_service.address) as channel:
        yield channel


@pytest.fixture
def org(channel: grpc.Channel, organization: str) -> Organization:
    return Organization(AppointmentServiceStub(channel), f"{WORD} {organization}")


@pytest.fixture
def other(channel: grpc.Channel, organization: str) -> Organization:
    return Organization(AppointmentServiceStub(channel), f"other {organization}")


def command(url: str, *arguments: str, stdin: Any = subprocess.DEVNULL) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", "service", "purge", *arguments],
        cwd=ROOT,
        env={**base_environment(), "DATABASE_URL": url},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def purge(url: str, *arguments: str) -> tuple[int, str, str]:
    """Run the command to its end; return the exit code, stdout and stderr."""
    process = command(url, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def confirmed(url: str, organization: str) -> str:
    code, out, err = purge(url, organization, "--yes-delete", organization)
    assert (code, err) == (0, "")
    return out


def rows_of(url: str, organization: str) -> dict[str, int]:
    """Return how many rows of an organization are in each table that has any."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name = 'organization_id'"
        ).fetchall()
        counts = {
            table: connection.execute(
                f"SELECT count(*) FROM {table} WHERE organization_id = %s".encode(),
                (organization,),
            ).fetchone()
            for (table,) in tables
        }
    return {table: count[0] for table, count in counts.items() if count and count[0]}


def fill(org: Organization, channel: grpc.Channel, own_gateway: Program) -> None:
    """Leave rows in every table that has an organization."""
    # Nobody listens there, so deliveries fail and are recorded.
    body = {"organizationId": org.id, "url": "http://127.0.0.1:9/x", "description": WORD}
    created = Client(own_gateway, org.id).send(
        "POST", "/api/webhooks", json.dumps(body).encode(), Content_Type="application/json"
    )
    assert created.status == 201
    for number in range(5):
        org.upsert(f"{number}", number, number + 1, title=WORD, idempotency_key=f"{number}")
    org.upsert("0", 0, 1, title=WORD, idempotency_key="unchanged")
    org.upsert("shared", 0, 1, resource_id="r", additional_resource_ids=["s"])
    org.redact("1")
    soon = Submissions(channel, org.id)
    soon.wait(soon.upsert("later", 60, 61, title=WORD))


@pytest.mark.slow
def test_it_removes_every_row_of_one_organization(
    url: str,
    own_service: Program,
    channel: grpc.Channel,
    org: Organization,
    other: Organization,
    start_worker: StartProgram,
    start_gateway: StartProgram,
    rabbitmq: RabbitMQ,
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=own_service.address)
    settings = {
        "DATABASE_URL": url,
        "AMQP_URL": rabbitmq.add_virtual_host("purge"),
        "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
        "EVENT_LEASE": "2",
    }
    worker = start_worker(**settings)
    keys = [routing_key(org.id, "*")]
    with Consumer(rabbitmq, keys, virtual_host="purge") as consumer:
        for each in (other, org):
            fill(each, channel, gateway)
        latest = org.changes()[-1].revision
        until(lambda: consumer.latest.get(org.id, 0) == latest)
        until(lambda: {"event_cursors", "webhook_deliveries"} <= rows_of(url, org.id).keys())
        worker.stop()
        Submissions(channel, org.id).upsert("queued", 70, 71, title=WORD)
        tables = {table.name for table in TABLES}
        assert rows_of(url, org.id).keys() == tables
        before = rows_of(url, other.id)
        client = Client(gateway, org.id)
        listed = client.call("GET", "/appointments")
        assert WORD in listed.content.decode()

        removed = confirmed(url, org.id)

        assert all(f"rows of {table} removed" in removed for table in tables)
        assert f"{latest} rows of appointment_history removed" in removed
        # The note for operations that were accepted before.
        assert rows_of(url, org.id) == {"purged_organizations": 1}
        assert rows_of(url, other.id) == before
        other.check_history()
        # The caches serve nothing of it.
        again = client.call("GET", "/appointments", If_None_Match=listed.headers["ETag"])
        assert (again.status, again.json["appointments"]) == (200, [])
        assert client.call("GET", "/appointments/0").status == 404
        assert org.changes() == []

        # The organization can be used anew, and its followers get it from the beginning.
        start_worker(**settings)
        seen = len(consumer.messages)
        assert org.upsert("0", 0, 1, title="new").appointment.revision == 1
        until(lambda: len(consumer.messages) > seen)
        assert json.loads(consumer.messages[seen].body)["revision"] == "1"
        org.check_history()


def test_it_asks_for_the_name_again(url: str, org: Organization) -> None:
    org.upsert("a", 0, 30)

    def answered(answer: str) -> tuple[int, str, str]:
        ours, theirs = pty.openpty()
        try:
            process = command(url, org.id, stdin=theirs)
            os.write(ours, answer.encode())
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err
        finally:
            os.close(ours)
            os.close(theirs)

    code, out, err = answered("yes\n")
    assert (code, "that is another name; nothing was removed" in err) == (1, True)
    assert "1 appointments, 1 changes and 0 webhooks" in out
    assert len(org.changes()) == 1
    code, out, err = answered(f"{org.id}\n")
    assert (code, err) == (0, "")
    assert "1 rows of appointment_history removed" in out
    assert org.changes() == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "nobody can be asked; nothing was removed. Scripts say --yes-delete"),
        (("--yes-delete", "another"), "that is another name; nothing was removed"),
    ],
)
def test_without_a_confirmation_it_removes_nothing(
    url: str, org: Organization, arguments: tuple[str, ...], problem: str
) -> None:
    org.upsert("a", 0, 30)
    code, _, err = purge(url, org.id, *arguments)
    assert (code, problem in err, err.count("\n")) == (1, True, 1)
    assert len(org.changes()) == 1


def test_the_services_role_is_told_that_it_may_not(url: str, org: Organization) -> None:
    org.upsert("a", 0, 30)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS purge_test")
        connection.execute("CREATE ROLE purge_test LOGIN IN ROLE appointments_service")
    try:
        limited = psycopg.conninfo.make_conninfo(url, user="purge_test")
        code, _, err = purge(limited, org.id, "--yes-delete", org.id)
        assert code == 1
        assert "purge_test may not delete from" in err
        assert "the user that owns the tables" in err
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP ROLE purge_test")
    assert len(org.changes()) == 1


def test_an_organization_of_another_session_stays(url: str, org: Organization) -> None:
    org.upsert("a", 0, 30)
    with held_lock(url, org.id):
        code, _, err = purge(url, org.id, "--yes-delete", org.id)
    assert (code, "nothing was removed, try again" in err) == (1, True)
    assert len(org.changes()) == 1


async def test_meanwhile_its_writes_are_refused_and_those_of_others_are_not(
    url: str,
    channel: grpc.Channel,
    org: Organization,
    other: Organization,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = batch_request(appointment(org.id, f"{n}", n, n + 1) for n in range(30))
    org.stub.BatchUpsertAppointments(request)
    monkeypatch.setattr(purging, "BATCH", 7)
    found: list[object] = []
    remove = purging._remove_rest

    async def write_first(*arguments: Any) -> Any:
        """After the last batch, and before the rest is removed."""
        calls = (
            lambda: refused(org.upsert, "new", 100, 101).reason,
            lambda: other.upsert("a", 0, 30).outcome,
            lambda: Submissions(channel, org.id).upsert("new", 100, 101).done,
        )
        found.extend([await asyncio.to_thread(call) for call in calls])
        return await remove(*arguments)

    monkeypatch.setattr(purging, "_remove_rest", write_first)
    removed = await purge_organization(url, TIMEOUTS, org.id, is_meant=lambda _: True)
    assert removed is not None
    assert found == ["LOCK_TIMEOUT", pb.CREATED, False]
    assert removed["appointments"] == removed["appointment_history"] == 30
    # What was accepted in between is gone too.
    assert removed["queued_operations"] == 1
    assert rows_of(url, org.id) == {"purged_organizations": 1}
    assert org.upsert("new", 100, 101).appointment.revision == 1


def test_a_database_that_lacks_a_migration_is_left_as_it_is(
    create_database: CreateDatabase, organization: str
) -> None:
    url = create_database()
    lacking = NEEDED_MIGRATIONS[1]
    with psycopg.connect(url) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE version = %s", (lacking,))
    code, _, err = purge(url, organization, "--yes-delete", organization)
    assert code == 1
    assert f"lacks the migration {lacking}; run 'make migrate' first" in err
