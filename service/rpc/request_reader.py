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
)
# Open calls of each service that is not part of the API, such as health and reflection. The
# limits are separate, so that health checks work however many calls the others have.
MAX_OTHER_CALLS = 1000
NO_REQUEST = "no request came in time; nothing was written"
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

Context = grpc.aio.ServicerContext[Any, Any]
Received = TypeVar("Received", bound=Message)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestReader:
    """Reads the requests of calls, of which at most `max_calls` may be open at a time.

    A call is counted from when it is opened, even if it sends no request. A request has at
    most `max_bytes` bytes after decompression.
    """

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._open = 0

    @contextmanager
    def count_open(self) -> Iterator[None]:
        """Count a call as open while the block runs. `read` raises if there are too many."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def read(self, context: Context) -> bytes:
        """Return the first request of a call, waiting without a timeout.

        Raises Overloaded, MalformedRequest or RequestTooLarge.
        """
        self.check_limit()
        request = await context.read()
        if request is grpc.aio.EOF:
            raise MalformedRequest("the call ended without a request")
        return self.inflate(request)

    def check_limit(self) -> None:
        """Raise Overloaded if more than `max_calls` calls are open."""
        if self._open > self._max_calls:
            raise Overloaded("too many calls are open; nothing was written, try again later")

    def inflate(self, message: bytes) -> bytes:
        """Return a decompressed message. Never allocates more than `max_bytes` for it.

        Raises MalformedRequest or RequestTooLarge.
        """
        if not message.startswith(_GZIP):
            return message
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            plain = inflater.decompress(message, self._max_bytes + 1)
        except zlib.error as error:
            raise MalformedRequest(f"the message is not valid gzip: {error}") from error
        if len(plain) > self._max_bytes:
            raise RequestTooLarge(f"the decompressed message has more than {self._max_bytes} bytes")
        if not inflater.eof or inflater.unused_data:
            raise MalformedRequest("the message is not one complete gzip stream")
        return plain


def servicer_handlers(
    servicers: Mapping[ServiceDescriptor, object], *, max_bytes: int, timeout: float
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Serve services that are not part of the API, such as health, by grpcio-style servicers.

    Each service has its own limit of open calls. `timeout` (seconds) bounds the wait for a
    single request. Streams of requests may be idle.
    """

    def handler(
        method: MethodDescriptor,
        servicer: object,
        reader: RequestReader,
    ) -> Any:  # noqa: ANN401  # the type in grpc's stubs
        read = GetMessageClass(method.input_type).FromString
        behavior = getattr(servicer, method.name)
        make = (
            grpc.stream_stream_rpc_method_handler
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            _streams(behavior, read, reader)
            if method.client_streaming
            else _single(behavior, read, reader, timeout),
            response_serializer=_serialized,
        )

    def handlers(service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        reader = RequestReader(max_calls=MAX_OTHER_CALLS, max_bytes=max_bytes)
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
        with reader.count_open():
            try:
                async with asyncio.timeout(timeout):
                    request = parsed(read, await reader.read(context))
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
) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
        with reader.count_open():
            failure: ServiceError | None = None

            async def received() -> AsyncIterator[Received]:
                nonlocal failure
                try:
                    async for request in requests:
                        yield parsed(read, reader.inflate(request))
                except ServiceError as error:
                    failure = error

            try:
                reader.check_limit()
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
