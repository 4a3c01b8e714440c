"""The queue in RabbitMQ: partitions by organization, each with one active consumer.

An organization's operations are always in the same quorum queue, and a queue gives its
messages to one worker at a time, in order: so they are applied in the order of acceptance,
whatever the number of workers.

The service chooses the queue. The broker's consistent-hash exchange would choose others
after a restart than before: it makes its table anew then, in another order, while operations
of the same organizations still wait where the old table had sent them.
"""

from collections.abc import Sequence

from aio_pika.abc import AbstractChannel

from service.amqp import Broker
from service.operations.operation import Operation
from service.operations.rabbitmq.messages import PARTITIONS, messages, outgoing

# What was brought to workers again and again without an end.
DEAD_LETTERS = "appointments.operations.dead"
# What is in none of our messages' form.
UNREADABLE = "appointments.operations.unreadable"
DELIVERY_LIMIT = 20


async def declare_queues(channel: AbstractChannel) -> None:
    """Declare everything; the same for those who publish and those who consume."""
    for name in (DEAD_LETTERS, UNREADABLE):
        await channel.declare_queue(
            name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                # Where there is a limit by default, what reaches it is dropped.
                "x-delivery-limit": 1_000_000,
            },
        )
    for name in PARTITIONS:
        await channel.declare_queue(
            name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": DEAD_LETTERS,
                # With the default a dead letter can be lost on its way.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )


class RabbitMQQueue:
    """Appends operations: confirmed by the broker, without asking the database."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def append(self, operations: Sequence[Operation]) -> list[Exception | None]:
        """Raises BrokerUnavailable."""
        groups = messages(operations)
        failures = await self._broker.publish_in_order(
            "", [outgoing(partition, items) for partition, items in groups], mandatory=True
        )
        results: list[Exception | None] = [None] * len(operations)
        for (_, items), failure in zip(groups, failures, strict=True):
            for position, _ in items:
                results[position] = failure
        return results
