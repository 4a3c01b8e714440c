"""Operations that are queued in RabbitMQ: none lost, in order, once, whoever dies or hangs."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import aio_pika
import grpc
import orjson
import psutil
import psycopg
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from appointments.v1 import appointment_pb2 as pb

from scripts.programs import Program, StartError
from scripts.rabbitmq import RabbitMQ
from scripts.stack import DATABASE
from service.operations.operation import parent_name
from service.operations.rabbitmq_messages import PARTITIONS, partition_of
from service.operations.rabbitmq_queue import (
    DEAD,
    DELIVERY_LIMIT,
    UNREADABLE,
    declare_queues,
)
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.observing import held_lock, metric, until
from tests.rest_client import Client
from tests.submitter import Submitter, problem
from tests.submitting import metadata_of, response_of

# Seconds after which a quorum queue is known to the broker that restarts after a kill.
QUEUES_KNOWN_AFTER = 3.5

Settings = dict[str, str]


@pytest.fixture(scope="module")
def own_database(create_database: CreateDatabase) -> str:
    """Its rows refuse the title "poison", and take forever over "slow"."""
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            CREATE FUNCTION obstruct() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.title = 'poison' THEN RAISE 'poisoned'; END IF;
                PERFORM pg_sleep(60);
                RETURN NEW;
            END
            $$
            """
        )
        connection.execute(
            "CREATE TRIGGER obstruct BEFORE INSERT ON appointments FOR EACH ROW"
            " WHEN (NEW.title IN ('poison', 'slow')) EXECUTE FUNCTION obstruct()"
        )
    return url


@pytest.fixture
def settings(own_database: str, rabbitmq: RabbitMQ) -> Settings:
    """A virtual host for each test: no worker of another one consumes its queues."""
    return {
        "DATABASE_URL": own_database,
        "OPERATION_QUEUE": "rabbitmq",
        "AMQP_URL": rabbitmq.add_virtual_host(f"test-{uuid.uuid4()}"),
    }


@pytest.fixture
def queue_service(start_service: StartProgram, settings: Settings) -> Program:
    return start_service(**settings)


@pytest.fixture
def start_consumer(start_worker: StartProgram, settings: Settings) -> StartProgram:
    """Start a worker, and wait until it consumes."""

    def start(**env: str) -> Program:
        worker = start_worker(**{**settings, **env})
        wait_until_consuming(worker)
        return worker

    return start


@pytest.fixture
def client(queue_service: Program) -> Iterator[Submitter]:
    with Submitter(queue_service.address) as client:
        yield client


def consuming(worker: Program) -> int:
    """How often it has begun to consume."""
    return sum('"consuming operations from RabbitMQ"' in line for line in worker.log_lines())


def wait_until_consuming(worker: Program, times: int = 1) -> None:
    until(lambda: consuming(worker) >= times)


def applied(worker: Program) -> float:
    return metric(worker, "appointments_applied_operations_sum")


def submit_many(client: Submitter, organization: str, numbers: range) -> list[str]:
    """One after another, each of its own minute and id."""
    return [client.upsert(organization, f"{n}", n, n + 1) for n in numbers]


def check_order(client: Submitter, organization: str, count: int) -> None:
    """Every number took effect, once and in order."""
    org = client.organization(organization)
    assert [entry.appointment.id for entry in org.changes()] == [f"{n}" for n in range(count)]
    org.check_history()


def on_channel(url: str, use: Callable[[AbstractChannel], object]) -> object:
    """Use a channel of our own; gives what the coroutine returns."""

    async def run() -> object:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            found: object = await use(channel)  # type: ignore[misc]
            return found

    return asyncio.run(run())


def waiting(settings: Settings, *queues: str) -> int:
    """Messages that nobody has been given, of some queues."""

    async def count(channel: AbstractChannel) -> int:
        found = [await channel.declare_queue(name, passive=True) for name in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    number = on_channel(settings["AMQP_URL"], count)
    assert isinstance(number, int)
    return number


def publish(settings: Settings, *bodies: bytes) -> None:
    async def send(channel: AbstractChannel) -> None:
        await declare_queues(channel)
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=2)
            await channel.default_exchange.publish(message, PARTITIONS[0])

    on_channel(settings["AMQP_URL"], send)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs as long as the block runs."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_operation_ends_as_the_synchronous_call_does(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = [
        client.upsert(organization, "a", 0, 10, title="Cut"),
        client.upsert(organization, "b", 5, 15),
        client.upsert(organization, "a", 0, 10, title="Cut"),
        client.upsert(organization, "a", 0, 20),
        client.cancel(organization, "a"),
        client.cancel(organization, "nowhere"),
    ]
    assert not any(client.get(name).done for name in names)
    assert client.organization(organization).changes() == []
    start_consumer()
    ended = [client.ended(name) for name in names]
    org = client.organization(organization)
    assert [metadata_of(ended[n]).outcome for n in (0, 2, 3, 4)] == [
        pb.CREATED,
        pb.UNCHANGED,
        pb.UPDATED,
        pb.CANCELLED,
    ]
    assert response_of(ended[4]) == org.get("a")
    taken = problem(ended[1])
    assert (taken.reason, [each.id for each in taken.conflicts]) == ("TIME_RANGE_CONFLICT", ["a"])
    assert problem(ended[5]).reason == "APPOINTMENT_NOT_FOUND"
    assert [entry.appointment for entry in org.changes()] == [
        response_of(ended[n]) for n in (0, 3, 4)
    ]
    org.check_history()


def test_an_id_that_cannot_have_been_given_out_is_not_found(
    client: Submitter, organization: str
) -> None:
    def name(at: datetime, version: int = 7) -> str:
        milliseconds = int(at.timestamp() * 1000)
        id = uuid.UUID(int=milliseconds << 80 | version << 76 | 0b10 << 62)
        return f"{parent_name(organization)}/operations/{id}"

    now = datetime.now(UTC)
    for unknown in (
        name(now + timedelta(hours=1)),
        name(now - timedelta(days=8)),
        name(now, version=4),
        f"{parent_name(organization)}/operations/1",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            client.get(unknown)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    # Of another machine, whose clock is a little ahead.
    assert not client.get(name(now + timedelta(seconds=10))).done
    assert not client.get(name(now)).done


def test_operations_are_accepted_while_the_database_is_away(
    own_postgres: OwnPostgres,
    start_service: StartProgram,
    start_gateway: StartProgram,
    start_worker: StartProgram,
    settings: Settings,
    organization: str,
) -> None:
    postgres = own_postgres()
    settings = {**settings, "DATABASE_URL": postgres.url(DATABASE)}
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    worker = start_worker(**settings)
    wait_until_consuming(worker)
    rest = Client(gateway, f"rest-{organization}")
    with Submitter(service.address) as client:
        client.all_ended([client.upsert(organization, "0", 0, 1)])
        postgres.stop(immediate=True)
        names = submit_many(client, organization, range(1, 50))
        accepted = rest.upsert("a", Prefer="respond-async")
        assert accepted.status == 202
        postgres.start()
        client.all_ended(names)
        until(lambda: rest.send("GET", accepted.headers["Location"]).json["done"])
        check_order(client, organization, 50)
        assert [item["id"] for item in rest.stored()] == ["a"]
    rest.close()


def test_a_broker_that_is_away_is_said_and_come_back_to(
    rabbitmq: RabbitMQ,
    queue_service: Program,
    client: Submitter,
    start_gateway: StartProgram,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=queue_service.address)
    rest = Client(gateway, organization)
    worker = start_consumer()
    client.all_ended([client.upsert(organization, "0", 0, 1)])
    time.sleep(QUEUES_KNOWN_AFTER)
    rabbitmq.kill()
    try:
        refused = [client.refused(organization, f"r{n}", 100 + n, 101 + n) for n in range(5)]
        for each in refused:
            assert (each.code, each.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE")
            assert each.retry_after == 1
        began = time.monotonic()
        answer = rest.upsert("g", Prefer="respond-async")
        assert time.monotonic() - began < 3
        assert (answer.status, answer.json["code"]) == (503, "BROKER_UNAVAILABLE")
        assert answer.headers["Retry-After"] == "1"
        # What needs no broker goes on.
        assert client.organization(organization).upsert("1", 1, 2).outcome == pb.CREATED
    finally:
        rabbitmq.start()
    until(lambda: try_to_submit(client, organization, "2", 2) is not None, within=30)
    names = submit_many(client, organization, range(3, 10))
    client.all_ended(names)
    wait_until_consuming(worker, 2)
    ids = {entry.appointment.id for entry in client.organization(organization).changes()}
    certain = {f"r{n}" for n in range(5) if "nothing was accepted" in refused[n].message}
    assert len(certain) >= 4  # the first may have been under way
    assert not ids & certain
    assert {f"{n}" for n in range(10)} <= ids
    queue_service.wait_for_event(lambda event: event["event"] == "RabbitMQ can be used again")
    rest.close()


def try_to_submit(client: Submitter, organization: str, id: str, minute: int) -> str | None:
    try:
        return client.upsert(organization, id, minute, minute + 1)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return None


def test_a_broker_that_hangs_keeps_nobody_waiting(
    rabbitmq: RabbitMQ, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()
    client.all_ended([client.upsert(organization, "0", 0, 1)])
    with stopped(rabbitmq.pid):
        began = time.monotonic()
        refused = client.refused(organization, "1", 1, 2)
        assert (refused.reason, time.monotonic() - began < 3.5) == ("BROKER_UNAVAILABLE", True)
        assert "not known" in refused.message
        began = time.monotonic()
        assert "nothing was accepted" in client.refused(organization, "x", 5, 6).message
        assert time.monotonic() - began < 3.5
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 8
    until(lambda: try_to_submit(client, organization, "1", 1) is not None, within=30)
    start_consumer()
    client.all_ended([client.upsert(organization, "2", 2, 3)])
    check_order(client, organization, 3)


def test_order_holds_with_several_workers_while_the_active_ones_are_killed(
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    organizations = [f"{n}-{organization}" for n in range(6)]
    workers = [start_consumer() for _ in range(3)]
    names: list[str] = []
    for part in range(3):
        for org in organizations:
            names += submit_many(client, org, range(part * 40, part * 40 + 20))
        with held_lock(settings["DATABASE_URL"], organizations[0]) as lock:
            for org in organizations:
                names += submit_many(client, org, range(part * 40 + 20, part * 40 + 40))
            lock.wait_for(1)
            if part < 2:  # the one that has the most of it in hand
                active = max(workers, key=applied)
                workers.remove(active)
                active.kill()
    client.all_ended(names)
    for org in organizations:
        check_order(client, org, 120)


def test_a_worker_that_was_stopped_for_long_does_no_harm(
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    quick = {"AMQP_URL": settings["AMQP_URL"] + "?heartbeat=1"}
    stalled = start_consumer(**quick)
    names = []
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        names += submit_many(client, organization, range(1))
        lock.wait_for(1)
        # These the worker has been given, or will be, before it goes on.
        names += submit_many(client, organization, range(1, 40))
        until(lambda: waiting(settings, *PARTITIONS) <= 40 - 16)
        stalled.process.send_signal(signal.SIGSTOP)
    try:
        other = start_consumer(**quick)
        client.all_ended(names)
        names = submit_many(client, organization, range(40, 60))
        client.all_ended(names)
    finally:
        stalled.process.send_signal(signal.SIGCONT)
    wait_until_consuming(stalled, 2)
    other.kill()
    client.all_ended(submit_many(client, organization, range(60, 80)))
    check_order(client, organization, 80)
    until(lambda: waiting(settings, *PARTITIONS) == 0)


def test_a_worker_that_is_told_to_stop_finishes_what_it_has_begun(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        [name] = submit_many(client, organization, range(1))
        lock.wait_for(1)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_event(lambda event: event["event"] == "stopping")
    assert worker.stop(within=10) == 0
    assert client.get(name).done
    assert waiting(settings, *PARTITIONS) == 0


def test_a_worker_that_is_told_to_stop_gives_back_what_it_cannot_finish(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        names = submit_many(client, organization, range(30))
        lock.wait_for(1)
        began = time.monotonic()
        assert worker.stop(within=20) == 0
        assert time.monotonic() - began < 10
        until(lambda: waiting(settings, *PARTITIONS) > 0)
    start_consumer()
    client.all_ended(names)
    check_order(client, organization, 30)


def test_locked_organizations_hold_up_their_own_partitions_alone(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    by_partition = {partition_of(f"{organization}{n}"): f"{organization}{n}" for n in range(200)}
    free, *locked = by_partition.values()
    assert len(locked) == len(PARTITIONS) - 1
    with ExitStack() as stack:
        locks = [stack.enter_context(held_lock(settings["DATABASE_URL"], org)) for org in locked]
        names = [name for org in locked for name in submit_many(client, org, range(2))]
        start_consumer()
        # One of them at a time has a connection.
        until(lambda: sum(lock.waiting() for lock in locks) == 1)
        for number in range(10):
            [name] = submit_many(client, free, range(number, number + 1))
            until(lambda name=name: client.get(name).done, within=1)  # type: ignore[misc]
        assert sum(lock.waiting() for lock in locks) <= 1
    client.all_ended(names)
    for org in locked:
        check_order(client, org, 2)


def test_what_the_database_refuses_fails_alone(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = [
        client.upsert(organization, f"{n}", n, n + 1, title="poison" if n % 3 == 1 else "")
        for n in range(12)
    ]
    start_consumer()
    for number, name in enumerate(names):
        ended = client.ended(name)
        if number % 3 == 1:
            refused = problem(ended)
            assert refused.reason == "OPERATION_FAILED"
            assert "poisoned" in refused.message
        else:
            assert metadata_of(ended).outcome == pb.CREATED
    client.organization(organization).check_history()


def test_what_always_takes_too_long_is_given_up(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    titles = ["", "slow", ""]
    names = [
        client.upsert(organization, f"{n}", n, n + 1, title=title) for n, title in enumerate(titles)
    ]
    start_consumer(STATEMENT_TIMEOUT="0.2", LOCK_TIMEOUT="0.2")
    slow = problem(client.ended(names[1], within=40))
    assert slow.reason == "OPERATION_FAILED"
    assert "not applied in 10 attempts" in slow.message
    client.all_ended([names[0], names[2]])


def message(organization: str, **changes: object) -> bytes:
    """A message of one operation, as it would be but for some changes."""
    operation = {
        "organization_id": organization,
        "operation_id": str(uuid.uuid4()),
        "accepted_at": "2026-01-01T00:00:00+00:00",
        "write": {"id": "a"},
    }
    return orjson.dumps([{**operation, **changes}])


def test_what_cannot_be_read_is_put_aside(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    unreadable = [
        b"",
        b"\x00\xff",
        b"{}",
        b"1",
        b'["x"]',
        b"[{}]",
        message(organization, accepted_at="2026-01-01T00:00:00"),
        message(organization, accepted_at=None),
        message(organization, operation_id=7),
        message(organization, operation_id="1"),
        message(organization, organization_id=None),
        message(organization, write=[]),
        message(organization, write={"id": None}),
    ]
    unfit = [
        message(organization + "\x00"),
        message(organization, accepted_at="0000-13-01T00:00:00+00:00"),
    ]
    publish(settings, *unreadable, *unfit, b"[]")
    names = submit_many(client, organization, range(5))
    worker = start_consumer()
    client.all_ended(names)
    until(lambda: waiting(settings, UNREADABLE) == len(unreadable) + len(unfit))
    until(lambda: waiting(settings, *PARTITIONS) == 0)
    worker.wait_for_event(lambda event: event["event"] == "unreadable operation put aside")
    check_order(client, organization, 5)
    # What has the form of an operation, but no sense, fails.
    publish(settings, message(organization, write={"id": "a", "start_time": "soon"}))
    until(lambda: len(client.of(organization).listed(filter="error:*")) == 1)


def test_what_was_delivered_in_vain_too_often_fails(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = submit_many(client, organization, range(2))

    async def wear_out(channel: AbstractChannel) -> None:
        """Take what there is and give it back until it is moved to the dead letters."""
        await channel.set_qos(prefetch_count=1)

        async def give_back(incoming: AbstractIncomingMessage) -> None:
            await incoming.nack(requeue=True)

        for name in PARTITIONS:
            await (await channel.get_queue(name, ensure=False)).consume(give_back)
        async with asyncio.timeout(20):
            while True:
                dead = await channel.declare_queue(DEAD, passive=True)
                if dead.declaration_result.message_count == len(names):
                    return
                await asyncio.sleep(0.05)

    on_channel(settings["AMQP_URL"], wear_out)
    worker = start_consumer()
    for name in names:
        refused = problem(client.ended(name))
        assert refused.reason == "OPERATION_FAILED"
        assert f"not applied in {DELIVERY_LIMIT} deliveries" in refused.message
    until(lambda: waiting(settings, DEAD) == 0)
    worker.wait_for_event(lambda event: event["event"] == "operation given up")
    client.all_ended(submit_many(client, organization, range(2)))


def test_keys_and_etags_hold_for_accepted_writes(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    start_consumer()
    org = client.organization(organization)
    first = client.upsert(organization, "a", 0, 10, idempotency_key="k")
    again = client.upsert(organization, "a", 0, 10, idempotency_key="k")
    other = client.upsert(organization, "a", 0, 20, idempotency_key="k")
    created = response_of(client.ended(first))
    assert response_of(client.ended(again)) == created
    assert problem(client.ended(other)).reason == "IDEMPOTENCY_KEY_REUSED"
    assert org.upsert("a", 0, 10, idempotency_key="k").appointment == created
    changed = org.upsert("a", 0, 11, etag=created.etag).appointment
    late = client.upsert(organization, "a", 0, 12, etag=created.etag)
    assert problem(client.ended(late)).reason == "ETAG_MISMATCH"
    fresh = client.upsert(organization, "a", 0, 13, etag=changed.etag)
    assert response_of(client.ended(fresh)).version == 3
    exists = client.upsert(organization, "a", 0, 14, create_only=True)
    assert problem(client.ended(exists)).reason == "APPOINTMENT_EXISTS"
    assert len(org.changes()) == 3


def test_a_broker_that_is_killed_loses_nothing_that_was_accepted(
    rabbitmq: RabbitMQ, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    organizations = [f"{n}-{organization}" for n in range(5)]
    names = [client.upsert(org, "0", 0, 1) for org in organizations]
    time.sleep(QUEUES_KNOWN_AFTER)
    for org in organizations:
        names += submit_many(client, org, range(1, 60))
    rabbitmq.kill()
    rabbitmq.start()
    for org in organizations:
        until(lambda org=org: try_to_submit(client, org, "60", 60) is not None)  # type: ignore[misc]
    start_consumer()
    client.all_ended(names)
    for org in organizations:
        client.all_ended(submit_many(client, org, range(61, 62)))
        check_order(client, org, 62)


def test_a_queue_that_is_deleted_is_made_again(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()

    async def delete(channel: AbstractChannel) -> None:
        for name in PARTITIONS:
            await channel.queue_delete(name)

    on_channel(settings["AMQP_URL"], delete)
    wait_until_consuming(worker, 2)
    client.all_ended(submit_many(client, organization, range(3)))


def test_queues_that_somebody_made_otherwise_are_told(
    settings: Settings,
    queue_service: Program,
    client: Submitter,
    start_worker: StartProgram,
    organization: str,
) -> None:
    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_queue(PARTITIONS[0], durable=True)

    on_channel(settings["AMQP_URL"], declare)
    refused = client.refused(organization, "a", 0, 1)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert "nothing was accepted" in refused.message
    worker = start_worker(**settings)
    for program in (queue_service, worker):
        event = program.wait_for_event(lambda event: "PRECONDITION_FAILED" in str(event))
        assert PARTITIONS[0] in event["error"]


@pytest.mark.parametrize("arguments", ["service", "worker"])
def test_rabbitmq_without_its_url_is_one_line(
    start_service: StartProgram, start_worker: StartProgram, arguments: str
) -> None:
    start = start_service if arguments == "service" else start_worker
    with pytest.raises(StartError, match="OPERATION_QUEUE=rabbitmq needs AMQP_URL") as caught:
        start(OPERATION_QUEUE="rabbitmq")
    assert "Traceback" not in str(caught.value)
    with pytest.raises(StartError, match="AMQP_URL: must be like amqp://"):
        start(OPERATION_QUEUE="rabbitmq", AMQP_URL="localhost:5672")
