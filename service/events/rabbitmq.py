"""A change as a message of RabbitMQ."""

import hashlib

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel

from service import messages
from service.amqp import Outgoing
from service.domain import HistoryEntry

EXCHANGE = "appointments.events"

# Routing keys and message ids are short strings of AMQP: at most 255 bytes.
LONGEST = 255

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


async def declare_exchange(channel: AbstractChannel) -> None:
    """Declare where the changes go; binding queues to it is up to those who want them."""
    await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)


def message(entry: HistoryEntry) -> Outgoing:
    """Make the message of a change: persistent, the entry as proto3 JSON."""
    organization_id = entry.appointment.organization_id
    return Outgoing(
        routing_key=routing_key(organization_id, entry.change.value.lower()),
        message=aio_pika.Message(
            orjson.dumps(messages.history_json(entry)),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=_short(organization_id, f"/{entry.revision}", organization_id),
            timestamp=entry.recorded_at,
            type=messages.change_type(entry),
            headers={"organization": organization_id, "revision": entry.revision},
        ),
    )


def routing_key(organization_id: str, change: str) -> str:
    """Return `<organization>.<change>`, of two words whatever the organization is called."""
    encoded = "".join(
        chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in organization_id.encode()
    )
    return _short(encoded, f".{change}", organization_id)


def _short(name: str, end: str, organization_id: str) -> str:
    """Put both together, or the organization's digest instead of its name, if too long."""
    text = name + end
    if len(text.encode()) <= LONGEST:
        return text
    return f"sha256-{hashlib.sha256(organization_id.encode()).hexdigest()}{end}"
