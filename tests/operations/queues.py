"""The operation queues for tests: all have the same guarantees."""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from aio_pika.abc import AbstractChannel

from local.programs import Program
from service.operations.rabbitmq.messages import PARTITIONS
from service.operations.rabbitmq.queue import DEAD_LETTERS, UNREADABLE
from tests.operations.consuming import Settings, on_channel, wait_until_consuming, waiting
from tests.operations.place import SHORT

QUEUES = ("postgres", "rabbitmq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """An operation queue, and the settings of programs that use it."""

    name: str
    # Settings of services and workers.
    settings: Settings
    # Settings with which other workers soon take over from one that hangs.
    impatient: Settings
    # Waits until a worker that listens takes operations.
    wait_until_ready: Callable[[Program], None]
    # The same after the worker has hung.
    wait_until_ready_again: Callable[[Program], None]
    # Counts the operations that no worker has taken.
    untaken: Callable[[Settings], int]


def postgres_queue() -> Queue:
    return Queue(
        name="postgres",
        settings={"OPERATION_QUEUE": "postgres"},
        impatient=SHORT,
        wait_until_ready=lambda _worker: None,
        wait_until_ready_again=lambda _worker: None,
        untaken=_not_leased,
    )


def rabbitmq_queue(url: str) -> Queue:
    return Queue(
        name="rabbitmq",
        settings={"OPERATION_QUEUE": "rabbitmq", "AMQP_URL": url},
        impatient={"AMQP_URL": f"{url}?heartbeat=1"},
        wait_until_ready=wait_until_consuming,
        wait_until_ready_again=lambda worker: wait_until_consuming(worker, 2),
        untaken=lambda settings: waiting(settings, *PARTITIONS),
    )


def _not_leased(settings: Settings) -> int:
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        row = connection.execute(
            "SELECT count(*) FROM queued_operations AS q WHERE NOT EXISTS ("
            " SELECT FROM operation_leases AS l WHERE l.organization_id = q.organization_id"
            " AND l.leased_until > clock_timestamp())"
        ).fetchone()
    assert row is not None
    count: int = row[0]
    return count


def delete_queues(url: str) -> None:
    """Delete the queues with all their operations."""

    async def delete(channel: AbstractChannel) -> None:
        for name in (*PARTITIONS, DEAD_LETTERS, UNREADABLE):
            await channel.queue_delete(name)

    on_channel(url, delete)
