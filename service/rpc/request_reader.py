"""Reads the requests of calls, and limits the number of open calls and the size of requests."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status

from service.errors import (
    DeadlineExceeded,
    MalformedRequest,
    Overloaded,
    RequestTooLarge,
    ServiceError,
)
from service.rpc.status import status_of

# gRPC would decompress a whole message before it checks its size, so messages are decompressed
# here. With gzip as the only algorithm the message itself shows whether it is compressed: no
# protobuf message begins with \x1f, a field of wire type 7, which does not exist.
SERVER_OPTIONS = (
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 0b101),  # none and gzip, but not deflate
    # From the first byte of TCP to the first frame of HTTP/2, TLS included. gRPC's own is 120 s.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
# Open calls of each service that is not part of the API, such as health and reflection. The
# limits are separate, so that health checks work however many calls the others have.
MAX_OTHER_CALLS = 1000
NO_REQUEST = "no request came in time; nothing was written"
# Requests that may take long to arrive, of all services together. gRPC keeps what has arrived of
# each, up to MAX_MESSAGE_BYTES.
MAX_SLOW_REQUESTS = 64
PATIENCE = 0.2  # seconds
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

Context = grpc.aio.ServicerContext[Any, Any]
Received = TypeVar("Received")

# Refuses a call by raising ServiceError.
Admit = Callable[[Context], Awaitable[object]]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class OpenCalls:
    """The open calls, which should be at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0

    @contextmanager
    def count(self) -> Iterator[None]:
        """Count a call as open while the block runs."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    def check(self) -> None:
        """Raise Overloaded if more calls are open than the limit."""
        if self._count > self._limit:
            raise Overloaded("too many calls are open; nothing was written, try again later")


class Arrivals:
    """The requests that are arriving, so that parts of requests do not fill the memory.

    While there are more than MAX_SLOW_REQUESTS, those that have waited the longest are refused, but
    none before PATIENCE. So requests that arrive at once are read, however many they are.
    """

    def __init__(self) -> None:
        # In the order in which they began to wait, with the number of checks before.
        # `reschedule` refuses one.
        self._waiting: dict[asyncio.Timeout, int] = {}
        self._checks = 0
        self._checking = False

    async def read(self, context: Context) -> Any:  # noqa: ANN401  # bytes or EOF
        """Return the next message of a call as it came, or EOF. Raises Overloaded."""
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting[waiting] = self._checks
                self._check_later()
                try:
                    return await context.read()
                finally:
                    self._waiting.pop(waiting, None)
        except TimeoutError as error:
            raise Overloaded(
                "too many requests take long to arrive; nothing was written, try again later"
            ) from error

    def _check_later(self) -> None:
        if len(self._waiting) > MAX_SLOW_REQUESTS and not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_later(PATIENCE, self._check)

    def _check(self) -> None:
        """Refuse what was there at the last check already.

        After a pause of the event loop that is nothing, as the next check is PATIENCE later.
        Otherwise requests that arrived during the pause would be refused before they are seen.
        """
        too_many = len(self._waiting) - MAX_SLOW_REQUESTS
        for waiting, checks in list(self._waiting.items())[: max(0, too_many)]:
            if checks < self._checks:
                del self._waiting[waiting]
                waiting.reschedule(0)
        self._checks += 1
        self._checking = False
        self._check_later()


class RequestReader:
    """Reads the requests of calls, of which at most `max_calls` may be open at a time.

    A call is counted from when it is opened, even if it sends no request.
    """

    def __init__(self, arrivals: Arrivals, *, max_calls: int) -> None:
        self.open = OpenCalls(max_calls)
        self.arrivals = arrivals

    async def read(self, context: Context) -> bytes:
        """Return the first request of a call as it came, waiting without a timeout.

        Raises Overloaded or MalformedRequest.
        """
        self.open.check()
        request = await self.arrivals.read(context)
        if request is grpc.aio.EOF:
            raise MalformedRequest("the call ended without a request")
        received: bytes = request
        return received


def is_compressed(message: bytes) -> bool:
    """Return whether a message is compressed, see SERVER_OPTIONS."""
    return message.startswith(_GZIP)


def inflated(message: bytes, max_bytes: int) -> bytes:
    """Return a message decompressed. Never allocates more than `max_bytes` for it.

    Raises MalformedRequest or RequestTooLarge.
    """
    if not is_compressed(message):
        return message
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        plain = inflater.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise MalformedRequest(f"the message is not valid gzip: {error}") from error
    if len(plain) > max_bytes:
        raise RequestTooLarge(f"the decompressed message has more than {max_bytes} bytes")
    if not inflater.eof or inflater.unused_data:
        raise MalformedRequest("the message is not one complete gzip stream")
    return plain


def servicer_handlers(
    servicers: Mapping[ServiceDescriptor, object],
    arrivals: Arrivals,
    *,
    max_bytes: int,
    timeout: float,
    admit: Admit | None = None,
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Serve services that are not part of the API, such as health, by grpcio-style servicers.

    Each service has its own limit of open calls. `timeout` (seconds) bounds the wait for a
    single request. Streams of requests may be idle. `admit` is called first for each stream of
    requests.
    """

    def handler(
        method: MethodDescriptor,
        servicer: object,
        reader: RequestReader,
    ) -> Any:  # noqa: ANN401  # the type in grpc's stubs
        from_string = GetMessageClass(method.input_type).FromString

        def read(request: bytes) -> Message:
            return parsed(from_string, inflated(request, max_bytes))

        behavior = getattr(servicer, method.name)
        make = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            _streams(behavior, read, reader, admit)
            if method.client_streaming
            else _single(behavior, read, reader, timeout),
            response_serializer=_serialized,
        )

    def handlers(service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        reader = RequestReader(arrivals, max_calls=MAX_OTHER_CALLS)
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {method.name: handler(method, servicer, reader) for method in service.methods},
        )

    return tuple(handlers(service, servicer) for service, servicer in servicers.items())


def _single(
    behavior: Callable[[Received, Context], Awaitable[object]],
    read: Callable[[bytes], Received],
    reader: RequestReader,
    timeout: float,
) -> Callable[[object, Context], Awaitable[object]]:
    async def answer(_: object, context: Context) -> object:
        with reader.open.count():
            try:
                async with asyncio.timeout(timeout):
                    request = read(await reader.read(context))
            except TimeoutError:
                await refuse(context, status_of(DeadlineExceeded(NO_REQUEST)))
            except ServiceError as error:
                await refuse(context, status_of(error))
            return await behavior(request, context)

    return answer


def _streams(
    behavior: Callable[[AsyncIterator[Received], Context], Awaitable[None]],
    read: Callable[[bytes], Received],
    reader: RequestReader,
    admit: Admit | None,
) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
        with reader.open.count():
            failure: ServiceError | None = None

            async def received() -> AsyncIterator[Received]:
                nonlocal failure
                try:
                    async for request in requests:
                        yield read(request)
                except ServiceError as error:
                    failure = error

            try:
                reader.open.check()
                if admit is not None:
                    await admit(context)
            except ServiceError as error:
                await refuse(context, status_of(error))
            await behavior(received(), context)
            if failure is not None:
                await refuse(context, status_of(failure))

    return answer


def parsed(read: Callable[[bytes], Received], request: bytes) -> Received:
    """Parse a request. Raises MalformedRequest."""
    try:
        return read(request)
    except DecodeError as error:
        raise MalformedRequest(f"the message cannot be parsed as its type: {error}") from error


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


async def refuse(
    context: Context, status: Status, metadata: tuple[tuple[str, str | bytes], ...] = ()
) -> NoReturn:
    """End a call with a status and its details."""
    details = ("grpc-status-details-bin", status.SerializeToString())
    with cancelled_on_disconnect():
        await context.abort(_CODES[status.code], status.message, (*metadata, details))


@contextmanager
def cancelled_on_disconnect() -> Iterator[None]:
    """Raise CancelledError if the caller disconnects while something is sent to it.

    gRPC raises InternalError then, before it cancels the call.
    """
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
