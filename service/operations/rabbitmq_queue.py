"""The queue in RabbitMQ: partitions by organization, each with one active consumer.

Operations are hashed by their organization into buckets, and the broker's consistent-hash
exchange spreads the buckets over quorum queues. An organization is always in one of them, and
a queue gives its messages to one worker at a time, in order: so operations of an organization
are applied in the order of acceptance, whatever the number of workers.
"""

from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel

from service.amqp import Broker, Outgoing
from service.operations.operation import Operation
from service.writes import write_parameter

EXCHANGE = "appointments.operations"
# As many workers apply operations at a time.
PARTITIONS = tuple(f"appointments.operations.{number}" for number in range(8))
# What was brought to workers again and again without an end.
DEAD = "appointments.operations.dead"
# What is in none of our messages' form.
UNREADABLE = "appointments.operations.unreadable"
DELIVERY_LIMIT = 20

# Operations of the same bucket share messages. Many times the partitions, for even shares.
_BUCKETS = 64
MAX_MESSAGE_OPERATIONS = 128
MAX_MESSAGE_BYTES = 256 * 1024


async def declare_queues(channel: AbstractChannel) -> None:
    """Declare everything; the same for those who publish and those who consume."""
    exchange = await channel.declare_exchange(EXCHANGE, "x-consistent-hash", durable=True)
    for name in (DEAD, UNREADABLE):
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    for name in PARTITIONS:
        queue = await channel.declare_queue(
            name,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                "x-delivery-limit": DELIVERY_LIMIT,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": DEAD,
                # With the default a dead letter can be lost on its way.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
        await queue.bind(exchange, routing_key="1")  # of this exchange: the queue's share


class RabbitMQQueue:
    """Appends operations: confirmed by the broker, without asking the database."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def append(self, operations: Sequence[Operation]) -> list[Exception | None]:
        """Raises BrokerUnavailable."""
        messages = list(_messages(operations))
        failures = await self._broker.publish_in_order(
            EXCHANGE,
            [_outgoing(bucket, [encoded for _, encoded in items]) for bucket, items in messages],
            mandatory=True,
        )
        results: list[Exception | None] = [None] * len(operations)
        for (_, items), failure in zip(messages, failures, strict=True):
            for position, _ in items:
                results[position] = failure
        return results


def _messages(operations: Sequence[Operation]) -> list[tuple[int, list[tuple[int, bytes]]]]:
    """Share operations out among messages: the bucket, and positions with what is sent."""
    buckets: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    sizes: dict[int, int] = defaultdict(int)
    full: list[tuple[int, list[tuple[int, bytes]]]] = []
    for position, operation in enumerate(operations):
        bucket = crc32(operation.organization_id.encode()) % _BUCKETS
        encoded = orjson.dumps(
            {
                "organization_id": operation.organization_id,
                "operation_id": operation.id,
                "accepted_at": operation.accepted_at,
                "write": write_parameter(operation.write),
            }
        )
        items = buckets[bucket]
        if items and (
            len(items) == MAX_MESSAGE_OPERATIONS or sizes[bucket] + len(encoded) > MAX_MESSAGE_BYTES
        ):
            full.append((bucket, items))
            items = buckets[bucket] = []
            sizes[bucket] = 0
        items.append((position, encoded))
        sizes[bucket] += len(encoded)
    return [*full, *buckets.items()]


def _outgoing(bucket: int, encoded: Sequence[bytes]) -> Outgoing:
    return Outgoing(
        routing_key=str(bucket),
        message=aio_pika.Message(
            b"[" + b",".join(encoded) + b"]",
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        ),
    )
