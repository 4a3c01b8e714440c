"""The errors of publishing to a broker that refuses, hangs, dies or was never there."""

import asyncio
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator

import aio_pika
import grpc
import psutil
import pytest
from aio_pika.abc import AbstractChannel

from local.rabbitmq import RabbitMQ
from service.amqp import Broker, Outgoing
from service.errors import BrokerUnavailable
from service.rpc.status import status_of
from tests.api import refusal_of

TIMEOUT = 1.0


async def nothing(channel: AbstractChannel) -> None:
    """Declare nothing."""


def to(queue: str, body: str = "") -> Outgoing:
    message = aio_pika.Message(body.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    return Outgoing(routing_key=queue, message=message)


@pytest.fixture
async def broker(rabbitmq: RabbitMQ) -> AsyncIterator[Broker]:
    broker = Broker(rabbitmq.url, name="test", timeout=TIMEOUT, declare=nothing)
    yield broker
    await broker.close()


@pytest.fixture
async def channel(rabbitmq: RabbitMQ) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(rabbitmq.url) as connection:
        yield await connection.channel()


@pytest.fixture
def queue() -> str:
    return f"test-{uuid.uuid4()}"


async def refused(broker: Broker, outgoing: Outgoing) -> BrokerUnavailable:
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.publish("", outgoing)
    return caught.value


async def accepted_again(broker: Broker, outgoing: Outgoing) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            return await broker.publish("", outgoing)
        except BrokerUnavailable:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)


async def received(rabbitmq: RabbitMQ, queue: str, count: int) -> list[str]:
    """Return the first messages of a queue, in order."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        found = await channel.get_queue(queue)
        bodies: list[str] = []
        async with asyncio.timeout(20), found.iterator(no_ack=True) as messages:
            async for message in messages:
                bodies.append(message.body.decode())
                if len(bodies) == count:
                    break
        return bodies


async def test_a_message_that_no_queue_takes_is_not_accepted(broker: Broker, queue: str) -> None:
    failure = await refused(broker, to(queue))
    assert failure.certain
    assert "no queue takes the message; nothing was accepted" in failure.message


async def test_a_message_that_the_queue_refuses_is_not_accepted(
    broker: Broker, channel: AbstractChannel, queue: str
) -> None:
    await channel.declare_queue(
        queue, auto_delete=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
    )
    await broker.publish("", to(queue))
    failure = await refused(broker, to(queue))
    assert not failure.certain
    assert "refused" in failure.message


@pytest.mark.parametrize("certain", [True, False])
def test_a_caller_is_told_to_try_again(*, certain: bool) -> None:
    status = status_of(BrokerUnavailable("RabbitMQ is away", certain=certain))
    failure = refusal_of(status, grpc.StatusCode.UNAVAILABLE)
    assert (failure.reason, failure.retry_after) == ("BROKER_UNAVAILABLE", 1)
    assert ("nothing was accepted" in failure.message) == certain
    assert ("not known" in failure.message) == (not certain)


async def test_many_messages_keep_their_order(
    channel: AbstractChannel, rabbitmq: RabbitMQ, queue: str
) -> None:
    broker = Broker(rabbitmq.url, name="test", timeout=20, declare=nothing)
    await channel.declare_queue(queue, durable=True)
    bodies = [str(number) for number in range(500)]
    failures = await broker.publish_in_order("", [to(queue, body) for body in bodies])
    assert failures == [None] * 500
    assert await received(rabbitmq, queue, 500) == bodies
    await broker.close()
    await channel.queue_delete(queue)


async def test_a_broker_that_hangs_delays_no_caller_beyond_the_timeout(
    broker: Broker, channel: AbstractChannel, rabbitmq: RabbitMQ, queue: str
) -> None:
    await channel.declare_queue(queue, durable=True)
    await broker.publish("", to(queue))
    sockets = len(psutil.Process().net_connections())
    os.kill(rabbitmq.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        failure = await refused(broker, to(queue))
        assert not failure.certain
        assert "whether the message was accepted is not known" in failure.message
        assert time.monotonic() - began < TIMEOUT + 1
        began = time.monotonic()
        failures = await asyncio.gather(*(refused(broker, to(queue)) for _ in range(10)))
        assert all(each.certain for each in failures)
        assert time.monotonic() - began < TIMEOUT + 1
        assert (await refused(broker, to(queue))).certain
        assert time.monotonic() - began < TIMEOUT + 1.5
    finally:
        os.kill(rabbitmq.pid, signal.SIGCONT)
    await accepted_again(broker, to(queue))
    give_up = time.monotonic() + 10
    while len(psutil.Process().net_connections()) > sockets:
        assert time.monotonic() < give_up, "a connection was left open"
        await asyncio.sleep(0.05)
    await channel.queue_delete(queue)


async def test_a_broker_that_was_killed_keeps_what_it_confirmed(
    broker: Broker, rabbitmq: RabbitMQ, queue: str
) -> None:
    async with await aio_pika.connect(rabbitmq.url) as connection:
        await (await connection.channel()).declare_queue(queue, durable=True)
    await asyncio.to_thread(rabbitmq.flush_declarations)
    await broker.publish("", to(queue, "before"))
    rabbitmq.kill()
    try:
        failure = await refused(broker, to(queue, "meanwhile"))
        assert (await refused(broker, to(queue, "meanwhile"))).certain
    finally:
        await asyncio.to_thread(rabbitmq.start)
    await accepted_again(broker, to(queue, "after"))
    bodies = await received(rabbitmq, queue, 2)
    assert bodies == ["before", "after"], failure.message


async def test_what_cannot_be_declared_is_an_error_that_says_so(
    channel: AbstractChannel, rabbitmq: RabbitMQ, queue: str
) -> None:
    await channel.declare_queue(queue, auto_delete=True)

    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_queue(queue, durable=True)

    broker = Broker(rabbitmq.url, name="test", timeout=TIMEOUT, declare=declare)
    failure = await refused(broker, to(queue))
    assert failure.certain
    assert "PRECONDITION_FAILED" in repr(failure.__cause__)
    await broker.close()


async def test_nobody_learns_the_password() -> None:
    broker = Broker("amqp://me:s3cret@127.0.0.1:9/", name="test", timeout=TIMEOUT, declare=nothing)
    failure = await refused(broker, to("any"))
    assert failure.certain
    for text in (failure.message, repr(failure), repr(failure.__cause__)):
        assert "s3cret" not in text
    await broker.close()
