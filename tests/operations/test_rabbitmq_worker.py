"""Workers of the queue in RabbitMQ apply each operation once and in order, despite failures."""

import asyncio
import uuid
from contextlib import ExitStack

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from service.operations.rabbitmq.messages import PARTITIONS, partition_of
from service.operations.rabbitmq.queue import (
    DEAD_LETTERS,
    DELIVERY_LIMIT,
    UNREADABLE,
    declare_queues,
)
from tests.conftest import StartProgram
from tests.observing import held_lock, until
from tests.operations.consuming import (
    Settings,
    check_order,
    on_channel,
    submit_many,
    waiting,
)
from tests.operations.queues import Queue
from tests.operations.submitter import Submitter, problem


@pytest.fixture
def queue(queue_in_rabbitmq: Queue) -> Queue:
    """Of RabbitMQ alone."""
    return queue_in_rabbitmq


def publish(settings: Settings, *bodies: bytes) -> None:
    async def send(channel: AbstractChannel) -> None:
        await declare_queues(channel)
        for body in bodies:
            message = aio_pika.Message(body, delivery_mode=2)
            await channel.default_exchange.publish(message, PARTITIONS[0])

    on_channel(settings["AMQP_URL"], send)


def test_locked_organizations_delay_only_their_partitions(
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
        until(lambda: sum(lock.waiting() for lock in locks) == 1)
    client.all_ended(names)
    for org in locked:
        check_order(client, org, 2)


def test_an_operation_that_always_times_out_is_given_up(
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
    """Return a message of one valid operation, with some changes."""
    operation = {
        "organization_id": organization,
        "operation_id": str(uuid.uuid4()),
        "accepted_at": "2026-01-01T00:00:00+00:00",
        "write": {"id": "a"},
    }
    return orjson.dumps([{**operation, **changes}])


def test_an_unreadable_message_moves_to_its_own_queue(
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
    worker.wait_for_event(lambda event: event["event"] == "unreadable operation moved")
    check_order(client, organization, 5)
    # A message with the form of an operation but invalid content fails.
    publish(settings, message(organization, write={"id": "a", "start_time": "soon"}))
    until(lambda: len(client.of(organization).listed(filter="error:*")) == 1)


def test_an_operation_that_was_delivered_too_often_fails(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = submit_many(client, organization, range(2))

    async def wear_out(channel: AbstractChannel) -> None:
        """Take the messages and return them until they move to the dead letters."""
        await channel.set_qos(prefetch_count=1)

        async def give_back(incoming: AbstractIncomingMessage) -> None:
            await incoming.nack(requeue=True)

        for name in PARTITIONS:
            await (await channel.get_queue(name, ensure=False)).consume(give_back)
        async with asyncio.timeout(20):
            while True:
                dead = await channel.declare_queue(DEAD_LETTERS, passive=True)
                if dead.declaration_result.message_count == len(names):
                    return
                await asyncio.sleep(0.05)

    on_channel(settings["AMQP_URL"], wear_out)
    worker = start_consumer()
    for name in names:
        refused = problem(client.ended(name))
        assert refused.reason == "OPERATION_FAILED"
        assert f"not applied in {DELIVERY_LIMIT} deliveries" in refused.message
    until(lambda: waiting(settings, DEAD_LETTERS) == 0)
    worker.wait_for_event(lambda event: event["event"] == "operation given up")
    client.all_ended(submit_many(client, organization, range(2)))
