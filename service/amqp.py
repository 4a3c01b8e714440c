"""The connection to RabbitMQ, and what its failures mean to a caller."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError, PublishError
from yarl import URL

from service.errors import BrokerUnavailable

# Seconds before another attempt to connect, doubled with every failure.
SHORTEST_PAUSE = 0.1
LONGEST_PAUSE = 2.0

# Seconds of silence between two signs of life, where the URL does not say.
HEARTBEAT = 10

log = structlog.get_logger()

# Declares what is published to or consumed from.
Declare = Callable[[AbstractChannel], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message with its routing key."""

    routing_key: str
    message: aio_pika.Message


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Link:
    connection: AbstractConnection
    channel: AbstractChannel

    @property
    def lost(self) -> bool:
        return self.channel.is_closed or not self.connection.connected.is_set()


class Broker:
    """Publishes with confirms, over a connection that is made when it is needed.

    After any failure the connection is thrown away and the next publish makes another:
    aio-pika's own reconnection hides what became of the messages in between. A broker
    that cannot be reached is tried again after a short pause; until then every publish
    fails at once.

    `declare` runs on each new connection, before anything is published there.
    """

    def __init__(self, url: str, *, name: str, timeout: float, declare: Declare) -> None:
        self._url = connection_url(url, name)
        self._timeout = timeout
        self._declare = declare
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._pause = SHORTEST_PAUSE
        self._retry_at = 0.0
        # What was last logged to be wrong with the broker.
        self._told = ""

    async def publish(self, exchange: str, outgoing: Outgoing, *, mandatory: bool = True) -> None:
        """Return when the broker has confirmed a message.

        `mandatory`: a message that no queue takes is an error too. The message must be
        persistent for the confirmation to mean that it outlives the broker.

        Raises BrokerUnavailable, after the timeout at the latest.
        """
        (failure,) = await self.publish_in_order(exchange, [outgoing], mandatory=mandatory)
        if failure is not None:
            raise failure

    async def publish_in_order(
        self, exchange: str, messages: Sequence[Outgoing], *, mandatory: bool = False
    ) -> list[BrokerUnavailable | None]:
        """Publish messages one after another without awaiting each confirmation.

        Returns, for each message, None if it was confirmed. After a failure others may
        have been accepted that follow it; none is sent over another connection, so what
        the broker got of them when a connection was lost is always a beginning.

        Raises BrokerUnavailable if nothing could be sent; all of it ends with the timeout.
        """
        give_up = monotonic() + self._timeout
        link = await self._connected()

        async def confirmed(outgoing: Outgoing) -> BrokerUnavailable | None:
            try:
                async with asyncio.timeout(give_up - monotonic()):
                    target = (
                        await link.channel.get_exchange(exchange, ensure=False)
                        if exchange
                        else link.channel.default_exchange
                    )
                    await target.publish(
                        outgoing.message, outgoing.routing_key, mandatory=mandatory
                    )
            except PublishError:
                return BrokerUnavailable("no queue takes the message", certain=True)
            except DeliveryError as error:
                self._discard(link)
                return _failure("RabbitMQ refused the message", error, certain=False)
            except TimeoutError as error:
                self._discard(link)
                return _failure("RabbitMQ did not confirm in time", error, certain=False)
            except (*CONNECTION_EXCEPTIONS, asyncio.CancelledError) as error:
                check_cancelled(error)
                self._discard(link)
                return _failure("the connection to RabbitMQ was lost", error, certain=False)
            return None

        # Tasks begin in the order in which they are made, and the channel sends in the
        # order in which they begin.
        tasks = [asyncio.create_task(confirmed(each)) for each in messages]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Close the connection; waits for it no longer than the timeout."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._discard(self._link)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _connected(self) -> _Link:
        link = self._link
        if link is not None and not link.lost:
            return link
        if link is not None:
            self._discard(link)
        if self._connecting is None:
            if monotonic() < self._retry_at:
                raise BrokerUnavailable("RabbitMQ could not be reached just now", certain=True)
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # The attempt is everybody's: it goes on if one who awaits it goes.
            return await asyncio.shield(self._connecting)
        except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
            check_cancelled(error)
            raise _failure("RabbitMQ cannot be used now", error, certain=True) from error

    async def _connect(self) -> _Link:
        connection: AbstractConnection | None = None
        try:
            connection = await connect(self._url, within=self._timeout)
            async with asyncio.timeout(self._timeout):
                channel = await connection.channel(on_return_raises=True)
                await self._declare(channel)
        except BaseException as error:
            if repr(error) != self._told and not isinstance(error, asyncio.CancelledError):
                log.warning("RabbitMQ cannot be used", error=repr(error))
                self._told = repr(error)
            self._retry_at = monotonic() + self._pause
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            if connection is not None:
                self._close(connection)
            raise
        else:
            if self._told:
                log.info("RabbitMQ can be used again")
            self._told = ""
            self._pause = SHORTEST_PAUSE
            self._link = _Link(connection=connection, channel=channel)
            return self._link
        finally:
            self._connecting = None

    def _discard(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self._close(link.connection)

    def _close(self, connection: AbstractConnection) -> None:
        """Close it beside."""
        task = asyncio.create_task(close(connection, within=self._timeout))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def connect(url: URL, *, within: float) -> AbstractConnection:
    """Connect within some seconds; close what does not come about.

    Closing is not left to the library's finalizer, which may find no event loop any more.
    """
    connection = aio_pika.Connection(url)
    try:
        async with asyncio.timeout(within):
            await connection.connect()
    except BaseException:
        await close(connection, within=within)
        raise
    return connection


async def close(connection: AbstractConnection, *, within: float) -> None:
    """Close a connection, without an error, within some seconds: who hangs takes no leave."""
    try:
        async with asyncio.timeout(within):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
        check_cancelled(error)
        log.debug("closing a connection to RabbitMQ failed", error=repr(error))
    except Exception:
        log.exception("closing a connection to RabbitMQ failed")


def connection_url(url: str, name: str) -> URL:
    """Return the URL with our name and heartbeat, unless it has its own."""
    parsed = URL(url)
    return parsed.update_query({"name": name, "heartbeat": str(HEARTBEAT), **dict(parsed.query)})


def is_amqp_url(url: str) -> bool:
    """Tell whether it is a URL of AMQP, with or without TLS."""
    try:
        parsed = URL(url)
        # A port that is no number is found only now.
        return parsed.scheme in {"amqp", "amqps"} and bool(parsed.host) and parsed.port != 0
    except ValueError:
        return False


def _failure(what: str, cause: BaseException, *, certain: bool) -> BrokerUnavailable:
    failure = BrokerUnavailable(what, certain=certain)
    failure.__cause__ = cause
    return failure


def check_cancelled(error: BaseException) -> None:
    """Raise it if it is our own cancellation: aiormq ends its waiters with the same error."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
