"""Operations as messages of RabbitMQ: several of one partition in a message, as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID
from zlib import crc32

import aio_pika
import orjson

from service.amqp import Outgoing
from service.operations.operation import Operation, queued_form

# The queues that organizations are spread over; as many workers apply operations at a time.
# With another number an organization may be in another of them: the queues must be empty
# whenever it changes.
PARTITIONS = tuple(f"appointments.operations.{number}" for number in range(8))

MAX_MESSAGE_OPERATIONS = 128
MAX_MESSAGE_BYTES = 256 * 1024

# An operation as it was read, which is how apply_operations takes it.
QueuedOperation = dict[str, Any]

# Positions among the operations that were given, with what is sent.
Items = list[tuple[int, bytes]]


def partition_of(organization_id: str) -> str:
    """Return the queue that has all operations of an organization."""
    return PARTITIONS[crc32(organization_id.encode()) % len(PARTITIONS)]


def messages(operations: Sequence[Operation]) -> list[tuple[str, Items]]:
    """Share operations out among messages, in order: the queue of each, and its items."""
    partitions: dict[str, Items] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    full: list[tuple[str, Items]] = []
    for position, operation in enumerate(operations):
        partition = partition_of(operation.organization_id)
        encoded = orjson.dumps(queued_form(operation))
        items = partitions[partition]
        if items and (
            len(items) == MAX_MESSAGE_OPERATIONS
            or sizes[partition] + len(encoded) > MAX_MESSAGE_BYTES
        ):
            full.append((partition, items))
            items = partitions[partition] = []
            sizes[partition] = 0
        items.append((position, encoded))
        sizes[partition] += len(encoded)
    return [*full, *partitions.items()]


def outgoing(partition: str, items: Items) -> Outgoing:
    """Make the message of some operations, persistent."""
    return Outgoing(
        routing_key=partition,
        message=aio_pika.Message(
            b"[" + b",".join(encoded for _, encoded in items) + b"]",
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        ),
    )


def read(body: bytes) -> list[QueuedOperation] | None:
    """Return the operations of a message; None if it is none of ours."""
    try:
        operations: list[QueuedOperation] = orjson.loads(body)
        if not isinstance(operations, list) or not all(map(_is_operation, operations)):
            return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return operations


def _is_operation(operation: QueuedOperation) -> bool:
    UUID(operation["operation_id"])
    return (
        isinstance(operation["organization_id"], str)
        and isinstance(operation["write"]["id"], str)
        and datetime.fromisoformat(operation["accepted_at"]).tzinfo is not None
    )
