"""Submitting to the queue in RabbitMQ, and observing it."""

import asyncio
from collections.abc import Callable

import aio_pika
import grpc
from aio_pika.abc import AbstractChannel

from local.programs import Program
from tests.observing import until
from tests.operations.submitter import Submitter

Settings = dict[str, str]


def consuming(worker: Program) -> int:
    """Return how often the worker has started to consume."""
    return sum('"consuming operations from RabbitMQ"' in line for line in worker.log_lines())


def wait_until_consuming(worker: Program, times: int = 1) -> None:
    until(lambda: consuming(worker) >= times)


def submit_many(client: Submitter, organization: str, numbers: range) -> list[str]:
    """Submit writes one after another, each with its own minute and id."""
    return [client.upsert(organization, f"{n}", n, n + 1) for n in numbers]


def try_to_submit(client: Submitter, organization: str, id: str, minute: int) -> str | None:
    try:
        return client.upsert(organization, id, minute, minute + 1)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return None


def check_order(client: Submitter, organization: str, count: int) -> None:
    """Check that every number took effect, once and in order."""
    org = client.organization(organization)
    assert [entry.appointment.id for entry in org.changes()] == [f"{n}" for n in range(count)]
    org.check_history()


def on_channel(url: str, use: Callable[[AbstractChannel], object]) -> object:
    """Run a coroutine with a new channel; return its result."""

    async def run() -> object:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            found: object = await use(channel)  # type: ignore[misc]
            return found

    return asyncio.run(run())


def waiting(settings: Settings, *queues: str) -> int:
    """Return the number of undelivered messages in some queues."""

    async def count(channel: AbstractChannel) -> int:
        found = [await channel.declare_queue(name, passive=True) for name in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    number = on_channel(settings["AMQP_URL"], count)
    assert isinstance(number, int)
    return number
