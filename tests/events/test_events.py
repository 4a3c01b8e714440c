"""Every change reaches RabbitMQ, in order, despite failures."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from local.rabbitmq import RabbitMQ
from local.stack import ANY_PORT, base_environment
from service.events.rabbitmq import routing_key
from tests.api import Organization, appointment, batch_request, soon
from tests.conftest import CreateDatabase, StartProgram
from tests.events.consumer import Consumer
from tests.observing import metric, until

NewOrganization = Callable[[str], Organization]
StartPublisher = Callable[..., Program]


@pytest.fixture(scope="module")
def own_database(create_database: CreateDatabase) -> str:
    """A database without the history of other tests, all of which would be published."""
    return create_database()


@pytest.fixture(scope="module")
def own_stub(own_database: str) -> Iterator[AppointmentServiceStub]:
    program = Program(
        "service", {**base_environment(), **ANY_PORT, "DATABASE_URL": own_database}
    ).wait_until_listening()
    try:
        with grpc.insecure_channel(program.address) as channel:
            yield AppointmentServiceStub(channel)
    finally:
        program.stop()


@pytest.fixture
def new_organization(own_stub: AppointmentServiceStub, organization: str) -> NewOrganization:
    return lambda name: Organization(own_stub, f"{name}-{organization}")


@pytest.fixture
def start_publisher(
    start_worker: StartProgram, own_database: str, rabbitmq: RabbitMQ
) -> StartPublisher:
    settings = {"DATABASE_URL": own_database, "AMQP_URL": rabbitmq.url, "EVENT_LEASE": "1"}
    return lambda **env: start_worker(**{**settings, **env})


def binding(*organizations: Organization) -> list[str]:
    return [routing_key(each.id, "x").removesuffix("x") + "*" for each in organizations]


def write_many(org: Organization, count: int, *, first: int = 0) -> None:
    """Write in calls of at most a thousand."""
    for start in range(first, first + count, 1000):
        end = min(start + 1000, first + count)
        response = org.stub.BatchUpsertAppointments(
            batch_request(appointment(org.id, f"{n}", n, n + 1) for n in range(start, end)),
            timeout=30,
        )
        assert not any(result.HasField("error") for result in response.results)


def cursor(database: str, organization: Organization) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT revision FROM event_cursors WHERE organization_id = %s", [organization.id]
        ).fetchone()
        return int(row[0]) if row else 0


def wait_for_charge(worker: Program) -> int:
    event = worker.wait_for_event(lambda event: event["event"] == "event publisher lease acquired")
    fence: int = event["fence"]
    return fence


def held_back(worker: Program) -> int:
    return sum('"event publishing failed"' in line for line in worker.log_lines())


def test_changes_of_many_writers_arrive_complete_and_in_order(
    rabbitmq: RabbitMQ, new_organization: NewOrganization, start_publisher: StartPublisher
) -> None:
    organizations = [new_organization(name) for name in ("a.b", "b", "c")]
    worker = start_publisher()

    def write(org: Organization, writer: int) -> None:
        for number in range(15):
            minute = writer * 100 + number
            org.upsert(f"{writer}-{number}", minute, minute + 1)
            if number % 5 == 0:
                org.cancel(f"{writer}-{number}")

    with Consumer(rabbitmq, binding(*organizations)) as consumer:
        with ThreadPoolExecutor(9) as pool:
            for job in [pool.submit(write, o, w) for o in organizations for w in range(3)]:
                job.result()
        for org in organizations:
            until(lambda org=org: consumer.latest.get(org.id) == 54)  # type: ignore[misc]
            assert consumer.entries(org.id) == org.changes()
    until(lambda: metric(worker, "appointments_events_behind") == 0)
    assert metric(worker, "appointments_events_published_total") >= 3 * 54


def test_confirmed_and_expired_holds_are_published(
    rabbitmq: RabbitMQ, new_organization: NewOrganization, start_publisher: StartPublisher
) -> None:
    org = new_organization("holds")
    start_publisher()
    keys = [routing_key(org.id, change) for change in ("confirmed", "expired")]
    with Consumer(rabbitmq, keys) as consumer:
        org.upsert("a", 0, 1, hold_until=soon(60))
        org.confirm("a")
        org.upsert("b", 1, 2, hold_until=soon(2.5))
        until(lambda: len(consumer.messages) == 2)
        messages = list(consumer.messages)
    assert [(each.type, each.message_id) for each in messages] == [
        ("appointment.confirmed", f"{org.id}/2"),
        ("appointment.expired", f"{org.id}/4"),
    ]
    assert '"state":"EXPIRED"' in messages[1].body.decode()


def test_a_message_has_type_id_and_headers(
    rabbitmq: RabbitMQ, new_organization: NewOrganization, start_publisher: StartPublisher
) -> None:
    org = new_organization("Zürich.*")
    start_publisher()
    with Consumer(rabbitmq, [routing_key(org.id, "created")]) as consumer:
        org.upsert("1", 0, 1, attributes={"note": "ü", "many": 3})
        org.cancel("1")
        org.upsert("2", 5, 6)
        until(lambda: len(consumer.messages) == 2)
        message, other = consumer.messages
        assert other.message_id == f"{org.id}/3"  # the key left the cancel out
    assert message.routing_key == routing_key(org.id, "created")
    assert message.type == "appointment.created"
    assert message.content_type == "application/json"
    assert message.message_id == f"{org.id}/1"
    assert message.delivery_mode == 2
    entry = org.changes()[0]
    assert message.timestamp is not None
    assert int(message.timestamp.timestamp()) == entry.recorded_at.seconds
    text = message.body.decode()
    assert '"resourceId":""' in text  # zero values too
    assert '"attributes":{"many":3,"note":"ü"}' in text
    assert '"revision":"1"' in text


@pytest.mark.parametrize(
    ("organization_id", "key"),
    [
        ("acme_1-x", "acme_1-x.updated"),
        ("a.b", "a%2Eb.updated"),
        ("*#~ %", "%2A%23%7E%20%25.updated"),
        ("ü", "%C3%BC.updated"),
        ("x" * 128, "x" * 128 + ".updated"),
    ],
)
def test_a_routing_key_has_two_words_whatever_the_organization(
    organization_id: str, key: str
) -> None:
    assert routing_key(organization_id, "updated") == key


def test_an_organization_too_long_for_a_routing_key_is_replaced_by_its_digest(
    rabbitmq: RabbitMQ, new_organization: NewOrganization, start_publisher: StartPublisher
) -> None:
    base = new_organization("x")
    org = Organization(base.stub, (base.id + "\N{GRINNING FACE}" * 128)[:128])
    key = routing_key(org.id, "created")
    assert key.startswith("sha256-")
    assert len(key) == 7 + 64 + len(".created")
    start_publisher()
    with Consumer(rabbitmq, [key]) as consumer:
        org.upsert("1", 0, 1)
        until(lambda: len(consumer.messages) == 1)
        assert consumer.entries(org.id) == org.changes()


def test_a_killed_worker_loses_no_change_and_keeps_the_order(
    rabbitmq: RabbitMQ, new_organization: NewOrganization, start_publisher: StartPublisher
) -> None:
    organizations = [new_organization("a"), new_organization("b")]
    for org in organizations:
        write_many(org, 1500)
    with Consumer(rabbitmq, binding(*organizations)) as consumer:
        killed = start_publisher()
        until(lambda: len(consumer.messages) > 300)
        killed.kill()
        came = len(consumer.messages)
        assert came < 3000, "it was too late to kill it"
        start_publisher()
        for org in organizations:
            until(lambda org=org: consumer.latest.get(org.id) == 1500)  # type: ignore[misc]
            assert consumer.entries(org.id) == org.changes()


def test_changes_wait_for_a_broker_that_was_killed(
    rabbitmq: RabbitMQ,
    own_database: str,
    new_organization: NewOrganization,
    start_publisher: StartPublisher,
) -> None:
    org = new_organization("a")
    write_many(org, 2000)
    with Consumer(rabbitmq, binding(org)) as consumer:
        worker = start_publisher()
        until(lambda: len(consumer.messages) > 300)
        rabbitmq.kill()
        try:
            assert cursor(own_database, org) < 2000, "it was too late to kill it"
            write_many(org, 10, first=2000)
            until(lambda: held_back(worker) == 1)
        finally:
            rabbitmq.start()
        until(lambda: consumer.latest[org.id] == 2010, within=40)
        assert consumer.entries(org.id) == org.changes()
        worker.wait_for_event(lambda event: event["event"] == "event publishing resumed")
        assert held_back(worker) == 1
        until(lambda: cursor(own_database, org) == 2010)


def test_a_worker_without_a_broker_runs_and_retries(
    own_database: str, new_organization: NewOrganization, start_worker: StartProgram
) -> None:
    org = new_organization("a")
    org.upsert("1", 0, 1)
    worker = start_worker(
        DATABASE_URL=own_database, AMQP_URL="amqp://someone:s3cret@127.0.0.1:9/", EVENT_LEASE="1"
    )
    wait_for_charge(worker)
    until(lambda: held_back(worker) == 1)
    until(lambda: metric(worker, "appointments_events_behind") >= 1)
    assert cursor(own_database, org) == 0
    assert worker.stop() == 0
    assert held_back(worker) == 1
    assert not any("s3cret" in line for line in worker.log_lines())


def test_a_stopped_publisher_is_replaced_and_moves_no_cursor_afterwards(
    rabbitmq: RabbitMQ,
    own_database: str,
    new_organization: NewOrganization,
    start_publisher: StartPublisher,
) -> None:
    org = new_organization("a")
    stopped = start_publisher()
    fence = wait_for_charge(stopped)
    other = start_publisher()
    with Consumer(rabbitmq, binding(org)) as consumer, ThreadPoolExecutor(1) as pool:
        end = threading.Event()

        def write() -> int:
            count = 0
            while not end.is_set():
                write_many(org, 20, first=count)
                count += 20
            return count

        writer = pool.submit(write)
        try:
            until(lambda: len(consumer.messages) > 100)
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                assert wait_for_charge(other) > fence
                came = len(consumer.messages)
                until(lambda: len(consumer.messages) > came + 200)
                moved = cursor(own_database, org)
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            stopped.wait_for_event(lambda event: event["event"] == "event publisher lease lost")
        finally:
            end.set()
        count = writer.result()
        until(lambda: consumer.latest[org.id] == count)
        assert consumer.entries(org.id) == org.changes()
        assert moved <= cursor(own_database, org)
        until(lambda: cursor(own_database, org) == count)
    # A worker that is stopped releases its lease.
    assert other.stop() == 0
    stopped.wait_for_event(lambda event: event.get("fence", 0) > fence + 1)
