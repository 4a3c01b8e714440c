"""Applies the operations that RabbitMQ keeps.

A message is acknowledged once all of its operations are done. What comes again is passed
over, by the results in the database: so each operation takes effect once, also when a worker
that was stopped for long goes on with messages that others have had meanwhile.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aio_pika
import orjson
import psycopg
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from service.amqp import connection_url
from service.database import Database
from service.errors import BrokerUnavailable, LockTimeout, ServiceError
from service.metrics import Metrics
from service.operations.rabbitmq_queue import (
    DEAD,
    DELIVERY_LIMIT,
    PARTITIONS,
    UNREADABLE,
    declare_queues,
)

# An organization that another session has locked is left out, unless it is the only one.
_APPLY = """
    SELECT r.organization_id, CASE
        WHEN %s::boolean
            OR pg_try_advisory_xact_lock(hashtextextended(r.organization_id, 7236001))
        THEN (SELECT true FROM apply_operations(r.organization_id, r.operations))
        ELSE false
    END
    FROM json_to_recordset(%s::json) AS r (organization_id text, operations json)
"""

_REFUSE = """
    SELECT refuse_operation(r.organization_id, r.operation_id, r.accepted_at, r.write, %s::text)
    FROM json_to_recordset(%s::json)
    AS r (organization_id text, operation_id uuid, accepted_at timestamptz, write json)
"""

# Messages that a worker has of each partition: so many that the next are there when some are
# applied, and with MAX_MESSAGE_BYTES each still no more than 128 MiB in all.
PREFETCH = 64

# Calls without an answer after which an operation that is alone in them is given up.
MAX_ATTEMPTS = 10

# Seconds before the broker, or the database, is tried again.
RETRY_DELAY = 1.0

log = structlog.get_logger()

_Operation = dict[str, Any]


class _Message(NamedTuple):
    incoming: AbstractIncomingMessage
    operations: list[_Operation]


class RabbitMQQueueWorker:
    """Consumes the partitions; the broker makes it the active consumer of some or all.

    `max_batch` bounds the operations of a call of the database; `timeout` is in seconds.
    """

    def __init__(
        self, url: str, database: Database, metrics: Metrics, *, max_batch: int, timeout: float
    ) -> None:
        self._url = connection_url(url, "appointments-worker")
        self._database = database
        self._metrics = metrics
        self._max_batch = max_batch
        self._timeout = timeout

    async def run(self) -> None:
        """Work until cancelled; what is not acknowledged then goes to others."""
        connected = True
        while True:
            try:
                async with asyncio.timeout(self._timeout):
                    connection = await aio_pika.connect(self._url)
                async with connection:
                    async with connection.channel() as channel:
                        await declare_queues(channel)
                    connected = True
                    await self._consume(connection)
            except (*CONNECTION_EXCEPTIONS, BrokerUnavailable, TimeoutError) as error:
                if connected:
                    log.warning("operations in RabbitMQ cannot be had", error=repr(error))
                connected = False
            await asyncio.sleep(RETRY_DELAY)

    async def _consume(self, connection: AbstractConnection) -> None:
        """Consume every queue until a channel closes."""
        closed = asyncio.Event()
        handlers: list[asyncio.Task[None]] = []
        try:
            # Workers that start together shall each become the active consumer of some.
            for name in random.sample(PARTITIONS, len(PARTITIONS)):
                handlers.append(
                    await self._subscribe(connection, closed, name, self._apply_waiting)
                )
                await asyncio.sleep(0.02)
            handlers.append(await self._subscribe(connection, closed, DEAD, self._bury))
            handlers.append(asyncio.create_task(_wait_for(closed)))
            done, _ = await asyncio.wait(handlers, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in handlers:
                task.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)

    async def _subscribe(
        self,
        connection: AbstractConnection,
        closed: asyncio.Event,
        name: str,
        handle: Callable[[AbstractChannel, "asyncio.Queue[AbstractIncomingMessage]"], Any],
    ) -> asyncio.Task[None]:
        """Consume a queue on a channel of its own: what is before a message there is of it too."""
        channel = await connection.channel(on_return_raises=True)
        channel.close_callbacks.add(lambda *_: closed.set())
        await channel.set_qos(prefetch_count=PREFETCH)
        waiting: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()

        async def receive(message: AbstractIncomingMessage) -> None:
            waiting.put_nowait(message)

        queue = await channel.get_queue(name, ensure=False)
        await queue.consume(receive)
        return asyncio.create_task(handle(channel, waiting))

    async def _apply_waiting(
        self, channel: AbstractChannel, waiting: "asyncio.Queue[AbstractIncomingMessage]"
    ) -> None:
        """Apply a partition's messages in order, as many at once as are there."""
        while True:
            messages: list[_Message] = []
            size = 0
            incoming: AbstractIncomingMessage | None = await waiting.get()
            while incoming is not None:
                operations = _read(incoming.body)
                if operations is None:
                    await _move_unreadable(channel, incoming)
                else:
                    messages.append(_Message(incoming, operations))
                    size += len(operations)
                incoming = (
                    waiting.get_nowait() if size < self._max_batch and waiting.qsize() else None
                )
            by_organization: dict[str, list[_Operation]] = {}
            for message in messages:
                for operation in message.operations:
                    of_one = by_organization.setdefault(operation["organization_id"], [])
                    of_one.append(operation)
            if size:
                await self._apply(by_organization)
                self._metrics.applied_together.observe(size)
                oldest = min(o["accepted_at"] for m in messages for o in m.operations)
                delay = datetime.now(UTC) - datetime.fromisoformat(oldest)
                self._metrics.operation_delay_seconds.observe(max(delay.total_seconds(), 0))
            if messages:
                await messages[-1].incoming.ack(multiple=True)

    async def _apply(self, by_organization: dict[str, list[_Operation]]) -> None:
        """Return when all are done, however long it takes."""
        left = list(by_organization)
        if len(left) > 1:
            try:
                found = await self._call(by_organization)
                left = [organization_id for organization_id, done in found if not done]
            except (ServiceError, psycopg.Error) as error:
                log.warning("operations not applied together", error=str(error))
        for organization_id in left:
            await self._apply_one(organization_id, by_organization[organization_id])

    async def _apply_one(self, organization_id: str, operations: Sequence[_Operation]) -> None:
        """Apply the operations of one organization, waiting for its lock and the database."""
        attempts = 0
        while True:
            try:
                await self._call({organization_id: operations})
            except LockTimeout:
                continue
            except (ServiceError, psycopg.Error) as error:
                if attempts == 0:
                    log.warning(
                        "operations not applied", organization=organization_id, error=str(error)
                    )
                # What takes too long may be the fault of an operation; else it is not.
                attempts += isinstance(error.__cause__, psycopg.errors.QueryCanceled)
                if attempts > 1 and len(operations) > 1:
                    for operation in operations:
                        await self._apply_one(organization_id, [operation])
                    return
                if attempts == MAX_ATTEMPTS:
                    await self._refuse(operations, f"not applied in {attempts} attempts: {error}")
                    return
                await asyncio.sleep(RETRY_DELAY)
            else:
                return

    async def _call(
        self, by_organization: dict[str, Sequence[_Operation]] | dict[str, list[_Operation]]
    ) -> Sequence[tuple[Any, ...]]:
        parameter = [
            {"organization_id": organization_id, "operations": operations}
            for organization_id, operations in by_organization.items()
        ]
        return await self._database.fetch(
            _APPLY, (len(by_organization) == 1, orjson.dumps(parameter).decode())
        )

    async def _refuse(self, operations: Sequence[_Operation], failure: str) -> None:
        for operation in operations:
            log.error(
                "operation given up",
                organization=operation["organization_id"],
                operation=operation["operation_id"],
            )
        await self._database.fetch(_REFUSE, (failure, orjson.dumps(operations).decode()))

    async def _bury(
        self, channel: AbstractChannel, waiting: "asyncio.Queue[AbstractIncomingMessage]"
    ) -> None:
        """End the operations of dead letters that are not done."""
        while True:
            incoming = await waiting.get()
            operations = _read(incoming.body)
            if operations is None:
                await _move_unreadable(channel, incoming)
                continue
            while True:
                try:
                    await self._refuse(
                        operations,
                        f"not applied in {DELIVERY_LIMIT} deliveries, each of which ended"
                        " without an answer",
                    )
                except (ServiceError, psycopg.Error) as error:
                    log.warning("dead letters not ended", error=str(error))
                    await asyncio.sleep(RETRY_DELAY)
                else:
                    break
            await incoming.ack()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


def _read(body: bytes) -> list[_Operation] | None:
    """Return the operations of a message; None if it is none of ours."""
    try:
        operations: list[_Operation] = orjson.loads(body)
        for operation in operations:
            datetime.fromisoformat(operation["accepted_at"])
            if not {"organization_id", "operation_id", "write"} <= operation.keys():
                return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return operations


async def _move_unreadable(channel: AbstractChannel, incoming: AbstractIncomingMessage) -> None:
    """Put a message aside, where it stays to be looked at."""
    log.error("unreadable operation put aside", queue=UNREADABLE, bytes=len(incoming.body))
    await channel.default_exchange.publish(
        aio_pika.Message(incoming.body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT),
        UNREADABLE,
    )
    await incoming.ack()
