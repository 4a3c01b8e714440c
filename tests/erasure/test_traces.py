"""After a redaction, the erased text is found nowhere: a search for unusual words."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.postgres import programs_directory
from local.programs import Program
from local.rabbitmq import RabbitMQ
from service.operations.rabbitmq.messages import PARTITIONS
from service.operations.rabbitmq.queue import DEAD_LETTERS, UNREADABLE
from tests.api import TIMEOUT, Organization, appointment, at
from tests.conftest import CreateDatabase, StartProgram
from tests.events.consumer import Consumer
from tests.observing import until
from tests.operations.consuming import wait_until_consuming, waiting
from tests.operations.submissions import Submissions, response_of
from tests.receiver import LOOPBACK, Receiver, status
from tests.rest_client import Client, Events

pytestmark = pytest.mark.slow

# Each occurs in one kind of place only.
TITLE, ATTRIBUTE, NAME, ACTOR, KEY = (
    f"zq{name}xw" for name in ("title", "attribute", "name", "actor", "key")
)
WORDS = (TITLE, ATTRIBUTE, NAME, ACTOR, KEY)


def found_in(text: str) -> set[str]:
    return {word for word in WORDS if word in text}


def dump(url: str) -> str:
    """Return the whole database, with what the planner has sampled."""
    done = subprocess.run(
        [programs_directory() / "pg_dump", "--inserts", url],
        capture_output=True,
        text=True,
        check=True,
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        samples = connection.execute(
            "SELECT coalesce(string_agg(s::text, ' '), '') FROM pg_stats s"
            " WHERE schemaname = 'public'"
        ).fetchone()
    assert samples is not None
    return done.stdout + str(samples[0])


class Place:
    """All programs, with a webhook, a stream, a consumer in RabbitMQ and operations there."""

    def __init__(
        self, url: str, programs: dict[str, Program], receiver: Receiver, consumer: Consumer
    ) -> None:
        self.url = url
        self.programs = programs
        self.receiver = receiver
        self.consumer = consumer


@pytest.fixture
def amqp(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.add_virtual_host("traces")


@pytest.fixture
def everything(
    create_database: CreateDatabase,
    start_service: StartProgram,
    start_worker: StartProgram,
    start_gateway: StartProgram,
    rabbitmq: RabbitMQ,
    amqp: str,
    organization: str,
) -> Iterator[Place]:
    url = create_database()
    settings = {
        "DATABASE_URL": url,
        "AMQP_URL": amqp,
        "OPERATION_QUEUE": "rabbitmq",
        "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
        "WEBHOOK_FIRST_RETRY": "0.05",
        "LOG_LEVEL": "debug",
    }
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, LOG_LEVEL="debug")
    worker = start_worker(**settings)
    wait_until_consuming(worker)
    programs = {"service": service, "gateway": gateway, "worker": worker}
    keys = [f"{organization}.*"]
    with Receiver() as receiver, Consumer(rabbitmq, keys, virtual_host="traces") as consumer:
        yield Place(url, programs, receiver, consumer)


def text_of(client: Client, path: str, **query: object) -> str:
    return client.call("GET", path, **query).content.decode()


def calendar(place: Place, organization: str) -> str:
    address = f"http://127.0.0.1:{place.programs['gateway'].port}/api/appointments.ics"
    with urllib.request.urlopen(f"{address}?organizationId={organization}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text.replace("\r\n ", "")


def write_everywhere(place: Place, organization: str) -> tuple[Organization, Submissions]:
    """Write the words in every way, and have them read by all caches and followers."""
    channel = grpc.insecure_channel(place.programs["service"].address)
    org = Organization(AppointmentServiceStub(channel), organization)
    soon = Submissions(channel, organization)
    text: dict[str, Any] = {"title": TITLE, "attributes": {NAME: ATTRIBUTE}}
    actor = (("x-actor", ACTOR),)
    for number, key in enumerate((KEY, f"{KEY} 2", f"{KEY} 3")):
        # The last one is UNCHANGED.
        request = rpc.UpsertAppointmentRequest(
            appointment=appointment(organization, "a", min(number, 1), 9, **text),
            idempotency_key=key,
        )
        org.stub.UpsertAppointment(request, timeout=TIMEOUT, metadata=actor)
    org.update("a", {"title": f"{TITLE} again", "updated_at": at(1)})
    accepted = soon.upsert("a", 2, 9, **text, actor=ACTOR, idempotency_key=f"{KEY} 4")
    assert response_of(soon.wait(accepted)).title == TITLE
    cancel = rpc.CancelAppointmentRequest(organization_id=organization, id="a")
    org.stub.CancelAppointment(cancel, timeout=TIMEOUT, metadata=actor)
    org.upsert("a", 2, 9, **text)
    # A conflict, a failure and a wrong request, which could get into logs.
    org.refused("b", 2, 9, title=TITLE)
    org.refused("a", 9, 2, title=TITLE)
    client = Client(place.programs["gateway"], organization)
    for _ in range(2):
        for path in ("/appointments", "/appointments/a", "/changes", "/appointments/a/history"):
            assert TITLE in text_of(client, path)
        assert TITLE in text_of(client, "/appointments", asOfRevision=1)
        assert TITLE in calendar(place, organization)
    return org, soon


@pytest.mark.timeout(600)
def test_the_erased_text_is_found_nowhere(everything: Place, amqp: str, organization: str) -> None:
    place = everything
    gateway = place.programs["gateway"]
    client = Client(gateway, organization)
    # The last change is not delivered until later.
    hook = {
        "organizationId": organization,
        "url": place.receiver.url("/hook"),
        "changes": ["CREATED", "UPDATED", "CANCELLED"],
    }
    place.receiver.answers["/hook"] = status(500)
    body = json.dumps(hook).encode()
    assert client.send("POST", "/api/webhooks", body, Content_Type="application/json").status == 201
    org, _ = write_everywhere(place, organization)
    latest = org.changes()[-1].revision
    until(lambda: place.consumer.latest.get(organization, 0) == latest)
    until(lambda: bool(place.receiver.requests))
    assert found_in(dump(place.url)) == {*WORDS}

    with Events(gateway, organization, latest) as stream:
        assert org.redact("a").outcome == pb.REDACTED
        [event] = stream.events(1)
    assert event["event"] == "redacted"
    assert not found_in(event["data"])
    assert not found_in(dump(place.url))
    until(lambda: place.consumer.latest.get(organization, 0) == latest + 1)
    assert not found_in(place.consumer.messages[-1].body.decode())
    assert place.consumer.messages[-1].type == "appointment.redacted"

    # A webhook that failed until now sends what is left of the changes, and the redaction.
    already = len(place.receiver.requests)
    place.receiver.answers["/hook"] = status(200)
    until(
        lambda: any(each.revision == latest + 1 for each in place.receiver.requests[already:]),
        within=60,
    )
    sent = [each for each in place.receiver.requests[already:] if each.at > 0]
    by_revision = {each.revision: each for each in sent}
    assert [*by_revision] == sorted(by_revision)
    assert by_revision[latest + 1].json["type"] == "appointment.redacted"
    assert not found_in(by_revision[latest].text)

    # Who reads everything again gets nothing of it.
    with Events(gateway, organization) as stream:
        again = stream.events(latest + 1)
    assert [event["event"] for event in again][-1] == "redacted"
    assert not found_in(json.dumps(again))
    for path in ("/appointments", "/appointments/a", "/changes", "/appointments/a/history"):
        assert not found_in(text_of(client, path))
    assert not found_in(text_of(client, "/appointments", asOfRevision=1))
    assert not found_in(calendar(place, organization))
    assert not found_in(text_of(client, "/operations"))

    for program in place.programs.values():
        assert not found_in("\n".join(program.log_lines())), program.name
    place.programs["worker"].stop()
    # A queue without messages has no text. Each is read by its only worker, so not by this test.
    assert waiting({"AMQP_URL": amqp}, *PARTITIONS, DEAD_LETTERS, UNREADABLE) == 0
    assert not found_in(dump(place.url))
