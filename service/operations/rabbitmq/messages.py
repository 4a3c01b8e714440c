"""RabbitMQ messages of operations. A message has several operations of a partition, as JSON."""

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

# The queues. Organizations are distributed over them by a hash; each has one active worker.
# Changing their number moves organizations to other queues, so all must be empty then.
PARTITIONS = tuple(f"appointments.operations.{number}" for number in range(8))

MAX_MESSAGE_OPERATIONS = 128
MAX_MESSAGE_BYTES = 256 * 1024

# An operation as read from a message, in the form that apply_operations accepts.
QueuedOperation = dict[str, Any]

# Encoded operations, each with its index in the sequence that is being sent.
Items = list[tuple[int, bytes]]


def partition_of(organization_id: str) -> str:
    """Return the queue of an organization."""
    return PARTITIONS[crc32(organization_id.encode()) % len(PARTITIONS)]


def messages(operations: Sequence[Operation]) -> list[tuple[str, Items]]:
    """Group operations into messages, in order. Returns each message's queue and items."""
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
    """Return a persistent message of operations."""
    return Outgoing(
        routing_key=partition,
        message=aio_pika.Message(
            b"[" + b",".join(encoded for _, encoded in items) + b"]",
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        ),
    )


def read(body: bytes) -> list[QueuedOperation] | None:
    """Return the operations of a message, None if it has another format."""
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
