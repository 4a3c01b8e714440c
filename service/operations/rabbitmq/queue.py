"""The queue in RabbitMQ: partitioned by organization, with one active consumer per partition.

All operations of an organization are in the same quorum queue. A queue delivers its messages in
order, to one worker at a time. So operations are applied in the order of acceptance, whatever
the number of workers.

The service chooses the queue. The broker's consistent-hash exchange builds its table again in
another order after a restart, so it would route an organization to another queue while
earlier operations still wait in the first one.
"""

from collections.abc import Sequence

from aio_pika.abc import AbstractChannel

from service.amqp import Broker
from service.operations.operation import Operation
from service.operations.rabbitmq.messages import PARTITIONS, messages, outgoing

# Messages that were delivered DELIVERY_LIMIT times without being acknowledged.
DEAD_LETTERS = "appointments.operations.dead"
# Messages that cannot be read.
UNREADABLE = "appointments.operations.unreadable"
DELIVERY_LIMIT = 20


async def declare_queues(channel: AbstractChannel) -> None:
    """Declare all queues. Publishers and consumers use the same declarations."""
    for name in (DEAD_LETTERS, UNREADABLE):
        await channel.declare_queue(
            name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                # Practically unlimited: at the default limit of RabbitMQ 4 messages are dropped.
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
                # The default, at-most-once, can lose dead letters.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )


class RabbitMQQueue:
    """Appends operations with publisher confirms, without using the database."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def append(self, operations: Sequence[Operation]) -> list[Exception | None]:
        """Publish the operations. Raises BrokerUnavailable if nothing could be sent."""
        groups = messages(operations)
        failures = await self._broker.publish_in_order(
            "", [outgoing(partition, items) for partition, items in groups], mandatory=True
        )
        results: list[Exception | None] = [None] * len(operations)
        for (_, items), failure in zip(groups, failures, strict=True):
            for position, _ in items:
                results[position] = failure
        return results
