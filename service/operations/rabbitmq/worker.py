"""Brings the operations that RabbitMQ keeps to the database.

A message is acknowledged once all of its operations are done; one that is not comes again,
to this worker or another.
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

# Messages that a worker has of each partition: so many that the next are there when some are
# applied, and with MAX_MESSAGE_BYTES each still no more than 128 MiB in all.
PREFETCH = 64

# Seconds before the broker is tried again.
RETRY_DELAY = 1.0

log = structlog.get_logger()

Messages = asyncio.Queue[AbstractIncomingMessage]


class RabbitMQQueueWorker:
    """Consumes the partitions; the broker makes it the active consumer of some or all.

    `max_batch` bounds the operations of a call of the database, by and large; `timeout`
    bounds every answer of the broker, in seconds.
    """

    def __init__(
        self, url: str, database: Database, metrics: Metrics, *, max_batch: int, timeout: float
    ) -> None:
        self._url = connection_url(url, "appointments-worker")
        self._applier = OperationApplier(database, metrics)
        self._metrics = metrics
        self._max_batch = max_batch
        self._timeout = timeout
        # What is being handled: at most one task of each queue.
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until cancelled.

        What is being applied then is finished and acknowledged, if that takes no longer
        than the timeout. The rest goes to others.
        """
        told = ""
        while True:
            # What cannot be applied now stays in the broker: each time that messages go
            # back there counts as a delivery.
            await self._applier.wait_for_database()
            began = asyncio.get_running_loop().time()
            try:
                await self._work()
                failure = "the connection was lost"
            except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
                check_cancelled(error)
                failure = repr(error)
            if asyncio.get_running_loop().time() - began > 2 * self._timeout:
                told = ""
            if failure != told:
                log.warning("operations in RabbitMQ cannot be had", error=failure)
            told = failure
            await asyncio.sleep(RETRY_DELAY)

    async def _work(self) -> None:
        """Connect, and consume until the connection is lost."""
        connection = await connect(self._url, within=self._timeout)
        try:
            async with asyncio.timeout(self._timeout), connection.channel() as channel:
                await declare_queues(channel)
            await self._consume(connection)
        finally:
            await close(connection, within=self._timeout)

    async def _consume(self, connection: AbstractConnection) -> None:
        """Consume every queue until one of them, or a channel, is there no more."""
        over = asyncio.Event()
        handlers = [asyncio.create_task(_wait_for(over))]
        try:
            # Workers that start together shall each become the active consumer of some.
            for name in random.sample(PARTITIONS, len(PARTITIONS)):
                handlers.append(await self._subscribe(connection, over, name, self._apply))
                await asyncio.sleep(0.02)
            handlers.append(await self._subscribe(connection, over, DEAD_LETTERS, self._bury))
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
        over: asyncio.Event,
        name: str,
        handle: Callable[[AbstractChannel, list[AbstractIncomingMessage]], Awaitable[None]],
    ) -> asyncio.Task[None]:
        """Handle a queue's messages, in order, in a task.

        The channel is of that queue alone: what came before a message there came from it.
        """
        waiting: Messages = asyncio.Queue()

        async def receive(message: AbstractIncomingMessage) -> None:
            waiting.put_nowait(message)

        async with asyncio.timeout(self._timeout):
            channel = await connection.channel(on_return_raises=True)
            channel.close_callbacks.add(lambda *_: over.set())
            # The queue may be deleted.
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: over.set())
            await channel.set_qos(prefetch_count=PREFETCH)
            await (await channel.get_queue(name, ensure=False)).consume(receive)

        async def handle_waiting() -> None:
            while True:
                messages = [await waiting.get()]
                while waiting.qsize():
                    messages.append(waiting.get_nowait())
                task = asyncio.ensure_future(handle(channel, messages))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
                # Being cancelled ends the waiting, not the work.
                await asyncio.shield(task)

        return asyncio.create_task(handle_waiting())

    async def _finish(self) -> None:
        """Wait for what is being handled, no longer than the timeout."""
        under_way = set(self._under_way)
        if under_way:
            await asyncio.wait(under_way, timeout=self._timeout)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _apply(
        self, channel: AbstractChannel, messages: list[AbstractIncomingMessage]
    ) -> None:
        """Apply messages of a partition, in order, as many together as a call may have."""
        operations: list[QueuedOperation] = []
        for position, message in enumerate(messages, 1):
            found = read(message.body)
            if found is None:
                await self._put_aside(channel, message.body)
            operations += found or ()
            if len(operations) < self._max_batch and position < len(messages):
                continue
            if operations:
                for unfit in await self._applier.apply(operations):
                    await self._put_aside(channel, orjson.dumps([unfit]))
                self._observe(operations)
            # And all before it.
            await message.ack(multiple=True)
            operations = []

    async def _bury(
        self, channel: AbstractChannel, messages: list[AbstractIncomingMessage]
    ) -> None:
        """End the operations of dead letters that are not done."""
        failure = f"not applied in {DELIVERY_LIMIT} deliveries, none of which came to an end"
        for message in messages:
            operations = read(message.body)
            if operations is None:
                await self._put_aside(channel, message.body)
            for unfit in await self._applier.refuse(operations or (), failure):
                await self._put_aside(channel, orjson.dumps([unfit]))
            await message.ack()

    async def _put_aside(self, channel: AbstractChannel, body: bytes) -> None:
        """Keep what cannot be read where it can be looked at."""
        log.error("unreadable operation put aside", queue=UNREADABLE, bytes=len(body))
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
