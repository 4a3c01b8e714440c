"""A sound database with every kind of write, and copies of it to undermine."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit, urlunsplit

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from tests.api import TIMEOUT, Organization, appointment, at, soon
from tests.conftest import CreateDatabase, StartProgram
from tests.databases import new_database
from tests.operations.submissions import Submissions

ORGANIZATION = "o"


@pytest.fixture(scope="module")
def sound(create_database: CreateDatabase, fork: StartProgram) -> str:
    """The URL of a database with every kind of write, to which nothing is connected."""
    url = create_database()
    service = fork("service", {"DATABASE_URL": url}).wait_until_listening()
    try:
        with (
            grpc.insecure_channel(service.address) as channel,
            closing(psycopg.connect(url, autocommit=True)) as sql,
        ):
            _write(Submissions(channel, ORGANIZATION), sql)
            _swap(Submissions(channel, "p").org)
    finally:
        service.stop()
    return url


@pytest.fixture
def copy(sound: str) -> Iterator[str]:
    """The URL of a copy of the sound database."""
    parts = urlsplit(sound)
    server = urlunsplit(parts._replace(path="/postgres"))
    with new_database(server, template=parts.path.removeprefix("/")) as (_, url):
        yield url


def _write(submissions: Submissions, sql: psycopg.Connection) -> None:
    org = submissions.org
    org.upsert("a", 0, 30, resource_id="r1", title="first", idempotency_key="created")  # 1
    org.upsert("a", 0, 30, resource_id="r1", title="second")  # 2
    org.upsert("a", 0, 30, resource_id="r2", title="second", idempotency_key="moved")  # 3
    org.upsert("a", 0, 30, resource_id="r2", title="second", idempotency_key="unchanged")
    org.upsert("h", 0, 30, resource_id="r1", hold_until=soon(3600), idempotency_key="held")  # 4
    org.confirm("h", idempotency_key="confirmed")  # 5
    org.upsert("e", 40, 50, resource_id="r1", hold_until=soon(1.5))  # 6
    while org.get("e").state != pb.Appointment.EXPIRED:
        time.sleep(0.01)
    org.upsert("b", 40, 50, resource_id="r1")  # 7 (e), 8
    org.upsert("m", 0, 30, resource_id="r3", additional_resource_ids=["r4", "r5"])  # 9
    org.upsert("m", 0, 30, resource_id="r3", additional_resource_ids=["r5", "r6"])  # 10
    org.upsert("c", 60, 90, updated_at=at(1))  # 11
    org.cancel("c", idempotency_key="cancelled")  # 12
    org.cancel("c", updated_at=at(2))
    org.upsert("c", 60, 90, updated_at=at(0), idempotency_key="stale")
    org.update("b", {"title": "new"}, ["title"], idempotency_key="updated")  # 13
    org.upsert(None, 100, 110, idempotency_key="without id")  # 14
    submissions.upsert("q", 120, 130, resource_id="r1", idempotency_key="accepted")  # 15
    submissions.upsert("q", 120, 130, resource_id="r1", idempotency_key="accepted")
    submissions.upsert("t", 120, 130, resource_id="r1")
    submissions.upsert("w", 140, 150, resource_id="r1")  # 16
    apply_queued(sql)
    submissions.upsert("later", 160, 170, resource_id="r1", idempotency_key="later")
    sql.execute(
        "SELECT create_webhook(%s, 'w', 'https://example.org/', '', '{}', true, '{}', '{}', '',"
        " 3, 20)",
        (ORGANIZATION,),
    )
    sql.execute("INSERT INTO event_cursors VALUES (%s, 'rabbitmq', 5)", (ORGANIZATION,))
    sql.execute(
        "INSERT INTO webhook_deliveries (organization_id, webhook_id, revision, attempt,"
        " attempted_at, duration_ms, http_status, error) VALUES (%s, 'w', 3, 1, now(), 5, 200, '')",
        (ORGANIZATION,),
    )


def apply_queued(sql: psycopg.Connection) -> None:
    """Apply the queued operations, as a worker does."""
    leases = [
        {"organization_id": organization, "fence": fence, "only_one": False}
        for organization, fence in sql.execute(
            "SELECT organization_id, fence FROM lease_operations('', 1, '1 minute')"
        )
    ]
    sql.execute("SELECT apply_queued_operations(%s, 10, '1 minute')", (json.dumps(leases),))


def _swap(org: Organization) -> None:
    """Let two appointments change places, with an expired hold between them."""
    org.upsert("a", 0, 30)
    org.upsert("e", 60, 70, hold_until=soon(1.5))
    org.upsert("b", 30, 60)
    while org.get("e").state != pb.Appointment.EXPIRED:
        time.sleep(0.01)
    wanted = [(30, 60, "a"), (80, 90, "e"), (0, 30, "b")]
    item = rpc.BatchUpsertAppointmentsRequest.Item
    org.stub.BatchUpsertAppointments(
        rpc.BatchUpsertAppointmentsRequest(
            requests=[
                item(appointment=appointment(org.id, id, start, end)) for start, end, id in wanted
            ],
            atomic=True,
        ),
        timeout=TIMEOUT,
    )
