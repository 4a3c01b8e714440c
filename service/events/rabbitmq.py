"""Changes as RabbitMQ messages."""

import hashlib

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel

from runtime.tracing import TRACEPARENT
from service import messages
from service.amqp import Outgoing
from service.domain import HistoryEntry

EXCHANGE = "appointments.events"

# Routing keys and message ids are AMQP short strings: at most 255 bytes.
MAX_SHORT_STRING = 255

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


async def declare_exchange(channel: AbstractChannel) -> None:
    """Declare the exchange. Consumers declare and bind their own queues."""
    await channel.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)


def message(entry: HistoryEntry, traceparent: str | None = None) -> Outgoing:
    """Return the message of a change: persistent, with the history entry as proto3 JSON."""
    organization_id, epoch = entry.appointment.organization_id, entry.appointment.epoch
    headers: dict[str, str | int] = {"organization": organization_id, "revision": entry.revision}
    end = f"/{entry.revision}"
    if epoch:
        headers["epoch"] = epoch
        end += f"/{epoch}"
    if traceparent is not None:
        headers[TRACEPARENT] = traceparent
    return Outgoing(
        routing_key=routing_key(organization_id, entry.change.value.lower()),
        message=aio_pika.Message(
            orjson.dumps(messages.history_json(entry)),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=_short(organization_id, end, organization_id),
            timestamp=entry.recorded_at,
            type=messages.change_type(entry),
            headers=dict(headers),
        ),
    )


def routing_key(organization_id: str, change: str) -> str:
    """Return `<organization>.<change>`.

    Dots and other special characters of the organization are percent-encoded, so that the
    key always has two words.
    """
    encoded = "".join(
        chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in organization_id.encode()
    )
    return _short(encoded, f".{change}", organization_id)


def _short(name: str, end: str, organization_id: str) -> str:
    """Concatenate both; if that is too long, replace the name by the organization's digest."""
    text = name + end
    if len(text.encode()) <= MAX_SHORT_STRING:
        return text
    return f"sha256-{hashlib.sha256(organization_id.encode()).hexdigest()}{end}"
