"""Publishes to RabbitMQ, and reports failures as BrokerUnavailable."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError, PublishError
from yarl import URL

from runtime.turns import result_of
from service.errors import BrokerUnavailable

# Seconds before the next attempt to connect. The delay doubles with every failure.
FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0

# The heartbeat timeout in seconds, unless the URL sets one.
HEARTBEAT = 10

log = structlog.get_logger()

# Declares exchanges and queues.
Declare = Callable[[AbstractChannel], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message with its routing key."""

    routing_key: str
    message: aio_pika.Message


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OpenChannel:
    connection: AbstractConnection
    channel: AbstractChannel

    @property
    def lost(self) -> bool:
        return self.channel.is_closed or not self.connection.connected.is_set()


class Broker:
    """Publishes with publisher confirms, over a connection that is opened when needed.

    After any failure the connection is closed, and the next publish opens another one.
    aio-pika's automatic reconnection is not used, since it hides what happened to unconfirmed
    messages. If the broker cannot be reached, every publish fails at once until a short
    delay has passed.

    `declare` runs on each new connection before anything is published. `timeout` is in
    seconds.
    """

    def __init__(self, url: str, *, name: str, timeout: float, declare: Declare) -> None:
        self._url = connection_url(url, name)
        self._timeout = timeout
        self._declare = declare
        self._open: _OpenChannel | None = None
        self._connecting: asyncio.Task[_OpenChannel] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._delay = FIRST_DELAY
        self._retry_at = 0.0
        # The last error that was logged; empty after a success.
        self._logged_error = ""

    async def publish(self, exchange: str, outgoing: Outgoing, *, mandatory: bool = True) -> None:
        """Publish a message and wait for its confirmation.

        With `mandatory`, a message that is routed to no queue is an error. Only a persistent
        message survives a restart of the broker once confirmed.

        Raises BrokerUnavailable, after the timeout at the latest.
        """
        (failure,) = await self.publish_in_order(exchange, [outgoing], mandatory=mandatory)
        if failure is not None:
            raise failure

    async def publish_in_order(
        self, exchange: str, messages: Sequence[Outgoing], *, mandatory: bool = False
    ) -> list[BrokerUnavailable | None]:
        """Publish messages in order, without waiting for each confirmation.

        Returns None for each confirmed message, and the failure of the others. Messages that
        follow a failed one may have been accepted. All are sent over the same connection; if
        it is lost, the broker has received a prefix of them.

        Raises BrokerUnavailable if nothing could be sent. Returns after the timeout at the
        latest.
        """
        deadline = monotonic() + self._timeout
        opened = await self._connected()

        async def confirmed(outgoing: Outgoing) -> BrokerUnavailable | None:
            try:
                async with asyncio.timeout(deadline - monotonic()):
                    target = (
                        await opened.channel.get_exchange(exchange, ensure=False)
                        if exchange
                        else opened.channel.default_exchange
                    )
                    await target.publish(
                        outgoing.message, outgoing.routing_key, mandatory=mandatory
                    )
            except PublishError:
                return BrokerUnavailable("no queue takes the message", certain=True)
            except DeliveryError as error:
                self._discard(opened)
                return _failure("RabbitMQ refused the message", error, certain=False)
            except TimeoutError as error:
                self._discard(opened)
                return _failure("RabbitMQ did not confirm in time", error, certain=False)
            except (*CONNECTION_EXCEPTIONS, asyncio.CancelledError) as error:
                check_cancelled(error)
                self._discard(opened)
                return _failure("the connection to RabbitMQ was lost", error, certain=False)
            return None

        # Tasks start in the order of their creation, and the channel sends in that order.
        tasks = [asyncio.create_task(confirmed(each)) for each in messages]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Close the connection, within the timeout."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._open is not None:
            self._discard(self._open)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _connected(self) -> _OpenChannel:
        opened = self._open
        if opened is not None and not opened.lost:
            return opened
        if opened is not None:
            self._discard(opened)
        if self._connecting is None:
            if monotonic() < self._retry_at:
                raise BrokerUnavailable("RabbitMQ could not be reached just now", certain=True)
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # Shared by all callers, so that it continues if one of them is cancelled.
            return await result_of(self._connecting)
        except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
            check_cancelled(error)
            raise _failure("RabbitMQ cannot be used now", error, certain=True) from error

    async def _connect(self) -> _OpenChannel:
        connection: AbstractConnection | None = None
        try:
            connection = await connect(self._url, within=self._timeout)
            async with asyncio.timeout(self._timeout):
                channel = await connection.channel(on_return_raises=True)
                await self._declare(channel)
        except BaseException as error:
            if repr(error) != self._logged_error and not isinstance(error, asyncio.CancelledError):
                log.warning("RabbitMQ unavailable", error=repr(error))
                self._logged_error = repr(error)
            self._retry_at = monotonic() + self._delay
            self._delay = min(self._delay * 2, LONGEST_DELAY)
            if connection is not None:
                self._close(connection)
            raise
        else:
            if self._logged_error:
                log.info("RabbitMQ available again")
            self._logged_error = ""
            self._delay = FIRST_DELAY
            self._open = _OpenChannel(connection=connection, channel=channel)
            return self._open
        finally:
            self._connecting = None

    def _discard(self, opened: _OpenChannel) -> None:
        if self._open is opened:
            self._open = None
            self._close(opened.connection)

    def _close(self, connection: AbstractConnection) -> None:
        """Close a connection in the background."""
        task = asyncio.create_task(close(connection, within=self._timeout))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def connect(url: URL, *, within: float) -> AbstractConnection:
    """Connect within some seconds. If that fails, close the connection.

    The library's finalizer would close it, and may run when there is no event loop any more.
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
    """Close a connection. Raises nothing; a peer that hangs is abandoned after `within`."""
    try:
        async with asyncio.timeout(within):
            await connection.close()
    except (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.CancelledError) as error:
        check_cancelled(error)
        log.debug("closing a connection to RabbitMQ failed", error=repr(error))
    except Exception:
        log.exception("closing a connection to RabbitMQ failed")
    finally:
        # After a failure, this only marks it as closed. Otherwise the library's finalizer would
        # close it again.
        await connection.close()


def connection_url(url: str, name: str) -> URL:
    """Add the connection's name and heartbeat to a URL, unless it has its own."""
    parsed = URL(url)
    return parsed.update_query({"name": name, "heartbeat": str(HEARTBEAT), **dict(parsed.query)})


def is_amqp_url(url: str) -> bool:
    """Return whether it is an AMQP URL, with or without TLS."""
    try:
        parsed = URL(url)
        # Reading `port` raises ValueError if it is not a number.
        return parsed.scheme in {"amqp", "amqps"} and bool(parsed.host) and parsed.port != 0
    except ValueError:
        return False


def _failure(what: str, cause: BaseException, *, certain: bool) -> BrokerUnavailable:
    failure = BrokerUnavailable(what, certain=certain)
    failure.__cause__ = cause
    return failure


def check_cancelled(error: BaseException) -> None:
    """Raise the error if the current task was cancelled. aiormq also raises CancelledError."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
