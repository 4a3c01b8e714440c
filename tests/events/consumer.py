"""A consumer of the published changes, like the program of a subscriber."""

import asyncio
import json
import threading
import uuid
from collections.abc import Sequence
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from appointments.v1 import appointment_pb2 as pb
from google.protobuf import json_format
from yarl import URL

from local.rabbitmq import RabbitMQ
from service.amqp import close, connect
from service.events.rabbitmq import EXCHANGE, declare_exchange


class Consumer:
    """A durable queue that is bound to the exchange, and all messages received from it."""

    def __init__(self, node: RabbitMQ, keys: Sequence[str], *, virtual_host: str = "") -> None:
        self.messages: list[AbstractIncomingMessage] = []
        # The highest revision received of each organization.
        self.latest: dict[str, int] = {}
        self._url = node.url + virtual_host
        self._queue = f"test-{uuid.uuid4()}"
        self._keys = keys
        self._bound = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._consume()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._bound.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def entries(self, organization: str) -> list[pb.HistoryEntry]:
        """The changes of an organization in the order in which each came first.

        Fails if one came before another that belongs before it.
        """
        entries: list[pb.HistoryEntry] = []
        for message in list(self.messages):
            about, revision = _about(message)
            if about != organization:
                continue
            assert revision <= len(entries) + 1, f"{revision} came after {len(entries)}"
            body: dict[str, Any] = json.loads(message.body)
            entry = json_format.ParseDict(body, pb.HistoryEntry())
            assert entry.revision == revision
            if revision == len(entries) + 1:
                entries.append(entry)
            else:
                assert entry == entries[revision - 1]
        return entries

    async def _consume(self) -> None:
        while not self._end.is_set():
            try:
                connection = await connect(URL(self._url), within=5)
                try:
                    await self._receive(await connection.channel())
                finally:
                    await close(connection, within=5)
            except (*CONNECTION_EXCEPTIONS, TimeoutError):
                await asyncio.sleep(0.1)

    async def _receive(self, channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.set_qos(prefetch_count=500)
        await declare_exchange(channel)
        queue = await channel.declare_queue(self._queue, durable=True)
        for key in self._keys:
            await queue.bind(EXCHANGE, key)

        async def receive(message: AbstractIncomingMessage) -> None:
            self.messages.append(message)
            organization, revision = _about(message)
            self.latest[organization] = max(revision, self.latest.get(organization, 0))
            await message.ack()

        await queue.consume(receive)
        self._bound.set()
        while not channel.is_closed and not self._end.is_set():  # noqa: ASYNC110  # set by a thread
            await asyncio.sleep(0.02)
        if self._end.is_set():
            await queue.delete(if_unused=False, if_empty=False)


def _about(message: AbstractIncomingMessage) -> tuple[str, int]:
    return str(message.headers["organization"]), int(str(message.headers["revision"]))
