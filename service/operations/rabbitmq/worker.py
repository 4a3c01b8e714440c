"""Applies the operations that are queued in RabbitMQ.

A message is acknowledged when all of its operations are done. Otherwise it is redelivered, to
this worker or another.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import aio_pika
import orjson
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from runtime.turns import result_of
from service.amqp import check_cancelled, close, connect, connection_url
from service.metrics import Metrics
from service.operations.rabbitmq.applier import OperationApplier
from service.operations.rabbitmq.messages import PARTITIONS, QueuedOperation, read
from service.operations.rabbitmq.queue import (
    DEAD_LETTERS,
    DELIVERY_LIMIT,
    UNREADABLE,
    declare_queues,
)
from service.postgres.database import Database

# Unacknowledged messages of each partition. Enough for the next batch to be ready when one is
# done; with messages of MAX_MESSAGE_BYTES, at most 128 MiB in all.
PREFETCH = 64

# Seconds before the next attempt to connect.
RETRY_DELAY = 1.0

log = structlog.get_logger()

Messages = asyncio.Queue[AbstractIncomingMessage]


class RabbitMQQueueWorker:
    """Consumes all partitions. The broker makes it the active consumer of some or all of them.

    A database call has about `max_batch` operations: messages are not split. `timeout`
    (seconds) bounds every wait for the broker. `changed` is called after operations were applied.
    """

    def __init__(
        self,
        url: str,
        database: Database,
        metrics: Metrics,
        *,
        changed: Callable[[], None],
        max_batch: int,
        timeout: float,
    ) -> None:
        self._url = connection_url(url, "appointments-worker")
        self._applier = OperationApplier(database, metrics, changed)
        self._metrics = metrics
        self._max_batch = max_batch
        self._timeout = timeout
        # Tasks that handle messages, at most one for each queue.
        self._handling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Apply operations until cancelled.

        Messages that are being handled then are finished and acknowledged within the timeout.
        All others are redelivered.
        """
        logged_failure = ""
        while True:
            # Without the database nothing is consumed: returning messages to the broker counts
            # towards their delivery limit.
            await self._applier.wait_for_database()
            began = asyncio.get_running_loop().time()
            try:
                await self._connect_and_consume()
                failure = "the connection was lost"
            except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
                check_cancelled(error)
                failure = repr(error)
            if asyncio.get_running_loop().time() - began > 2 * self._timeout:
                logged_failure = ""
            if failure != logged_failure:
                log.warning("not consuming operations from RabbitMQ", error=failure)
            logged_failure = failure
            await asyncio.sleep(RETRY_DELAY)

    async def _connect_and_consume(self) -> None:
        """Connect, and consume until the connection is lost."""
        connection = await connect(self._url, within=self._timeout)
        try:
            async with asyncio.timeout(self._timeout), connection.channel() as channel:
                await declare_queues(channel)
            await self._consume(connection)
        finally:
            await close(connection, within=self._timeout)

    async def _consume(self, connection: AbstractConnection) -> None:
        """Consume all queues until a queue is deleted or a channel is closed."""
        ended = asyncio.Event()
        handlers = [asyncio.create_task(_wait_for(ended))]
        try:
            # In random order and slowly, so that workers that start together share the queues.
            for name in random.sample(PARTITIONS, len(PARTITIONS)):
                handlers.append(await self._subscribe(connection, ended, name, self._apply))
                await asyncio.sleep(0.02)
            handlers.append(
                await self._subscribe(connection, ended, DEAD_LETTERS, self._refuse_dead_letters)
            )
            log.info("consuming operations from RabbitMQ")
            done, _ = await asyncio.wait(handlers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in handlers:
                task.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)
            await self._finish()

    async def _subscribe(
        self,
        connection: AbstractConnection,
        ended: asyncio.Event,
        name: str,
        handle: Callable[[AbstractChannel, list[AbstractIncomingMessage]], Awaitable[None]],
    ) -> asyncio.Task[None]:
        """Start a task that handles a queue's messages, in order.

        The queue has its own channel, so that acknowledging a message together with all
        messages before it on the channel concerns this queue only.
        """
        waiting: Messages = asyncio.Queue()

        async def receive(message: AbstractIncomingMessage) -> None:
            waiting.put_nowait(message)

        async with asyncio.timeout(self._timeout):
            channel = await connection.channel(on_return_raises=True)
            channel.close_callbacks.add(lambda *_: ended.set())
            # The broker cancels the consumer if the queue is deleted.
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: ended.set())
            await channel.set_qos(prefetch_count=PREFETCH)
            await (await channel.get_queue(name, ensure=False)).consume(receive)

        async def handle_waiting() -> None:
            while True:
                messages = [await waiting.get()]
                while waiting.qsize():
                    messages.append(waiting.get_nowait())
                task = asyncio.ensure_future(handle(channel, messages))
                self._handling.add(task)
                task.add_done_callback(self._handling.discard)
                # Cancelling this loop does not cancel the handling; `_finish` waits for it.
                await result_of(task)

        return asyncio.create_task(handle_waiting())

    async def _finish(self) -> None:
        """Wait for messages that are being handled, then cancel those beyond the timeout."""
        handling = set(self._handling)
        if handling:
            await asyncio.wait(handling, timeout=self._timeout)
        for task in handling:
            task.cancel()
        await asyncio.gather(*handling, return_exceptions=True)

    async def _apply(
        self, channel: AbstractChannel, messages: list[AbstractIncomingMessage]
    ) -> None:
        """Apply messages of a partition, in order, in batches of about `max_batch` operations."""
        operations: list[QueuedOperation] = []
        for position, message in enumerate(messages, 1):
            found = read(message.body)
            if found is None:
                await self._move_unreadable(channel, message.body)
            operations += found or ()
            if len(operations) < self._max_batch and position < len(messages):
                continue
            if operations:
                for unstorable in await self._applier.apply(operations):
                    await self._move_unreadable(channel, orjson.dumps([unstorable]))
                self._observe(operations)
            # With all messages before it.
            await message.ack(multiple=True)
            operations = []

    async def _refuse_dead_letters(
        self, channel: AbstractChannel, messages: list[AbstractIncomingMessage]
    ) -> None:
        """Finish the operations of dead letters as FAILED unless they are done."""
        failure = f"not applied in {DELIVERY_LIMIT} deliveries, none of which was acknowledged"
        for message in messages:
            operations = read(message.body)
            if operations is None:
                await self._move_unreadable(channel, message.body)
            for unstorable in await self._applier.refuse(operations or (), failure):
                await self._move_unreadable(channel, orjson.dumps([unstorable]))
            await message.ack()

    async def _move_unreadable(self, channel: AbstractChannel, body: bytes) -> None:
        """Publish an unreadable message to a queue of its own, for inspection."""
        log.error("unreadable operation moved", queue=UNREADABLE, bytes=len(body))
        await channel.default_exchange.publish(
            aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT),
            UNREADABLE,
            timeout=self._timeout,
        )

    def _observe(self, operations: list[QueuedOperation]) -> None:
        self._metrics.applied_together.observe(len(operations))
        oldest = min(datetime.fromisoformat(each["accepted_at"]) for each in operations)
        delay = datetime.now(UTC) - oldest
        self._metrics.operation_delay_seconds.observe(max(delay.total_seconds(), 0))


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
