"""What every call meets first: a limit of open calls, and of the size of its request."""

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

# gRPC would inflate a message whole before it looks at its size, so requests come as they
# were sent and are inflated here. With gzip alone that needs no mark: no message of
# protobuf begins as gzip does, since \x1f would be a field of wire type 7, which is none.
SERVER_OPTIONS = (
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 0b101),  # none and gzip, but not deflate
)
# Calls that are open at a time to a service that is not the API itself, of one process;
# whatever callers do with the others, health is still told.
MAX_OTHER_CALLS = 1000
NO_REQUEST = "no request came in time; nothing was written"
_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

Context = grpc.aio.ServicerContext[Any, Any]
Received = TypeVar("Received", bound=Message)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class RequestReader:
    """Receives the requests of calls, of which at most `max_calls` are open at a time.

    A call counts from its opening on, whether it sends a request or not. A request has at
    most `max_bytes`, inflated.
    """

    def __init__(self, *, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._open = 0

    @contextmanager
    def count_open(self) -> Iterator[None]:
        """Count a call as open. Whether that is one too many is told by receiving."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    async def read(self, context: Context) -> bytes:
        """Return the first request of a call; wait for it for ever.

        Raises Overloaded, MalformedRequest or RequestTooLarge.
        """
        self.check_limit()
        request = await context.read()
        if request is grpc.aio.EOF:
            raise MalformedRequest("the call ended without a request")
        return self.inflate(request)

    def check_limit(self) -> None:
        """Raise Overloaded if more calls are open than may be."""
        if self._open > self._max_calls:
            raise Overloaded("too many calls are open; nothing was written, try again later")

    def inflate(self, message: bytes) -> bytes:
        """Return a message without its compression, which costs no more than `max_bytes`.

        Raises MalformedRequest or RequestTooLarge.
        """
        if not message.startswith(_GZIP):
            return message
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            plain = inflater.decompress(message, self._max_bytes + 1)
        except zlib.error as error:
            raise MalformedRequest(f"the message is not what gzip makes: {error}") from error
        if len(plain) > self._max_bytes:
            raise RequestTooLarge(f"the message inflates to more than {self._max_bytes} bytes")
        if not inflater.eof or inflater.unused_data:
            raise MalformedRequest("the message is not one whole stream of gzip")
        return plain


def servicer_handlers(
    servicers: Mapping[ServiceDescriptor, object], *, max_bytes: int, timeout: float
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Serve what is not the API itself, as health is, each service with places of its own.

    A single request has `timeout` (seconds) to come. Streams of requests may be idle.
    """

    def handler(
        method: MethodDescriptor,
        servicer: object,
        reader: RequestReader,
    ) -> Any:  # noqa: ANN401  # as grpc's stubs have it
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
    """Return a request's message. Raises MalformedRequest."""
    try:
        return read(request)
    except DecodeError as error:
        raise MalformedRequest(f"the message cannot be read as its type: {error}") from error


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
    """Take what gRPC raises once the caller has gone for what it is: the call is cancelled.

    A caller that goes while something is sent to it is noticed there before gRPC cancels
    the call.
    """
    try:
        yield
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error
