"""Serves plain gRPC calls, which do not arrive on a gateway's relay stream."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc.status_pb2 import Status

from service.rpc.context import REQUEST_ID, read_context
from service.rpc.handler import Call, Handle, Stream, path_of
from service.rpc.request_reader import Context, RequestReader, cancelled_on_disconnect, refuse

# Returns whom the certificate of a caller names, if it has one.
Identify = Callable[[Context], str | None]

# Responses up to this size are never compressed: they fit into one packet.
MAX_PLAIN_BYTES = 1024


def direct_handlers(
    service: ServiceDescriptor,
    handle: Handle,
    stream: Stream,
    reader: RequestReader,
    identify: Identify | None = None,
) -> grpc.GenericRpcHandler:
    """Serve the methods of a service, each of which takes one request.

    Requests and responses are serialized messages. `handle` handles unary methods, `stream`
    methods that return a stream. All are registered as methods with a stream of requests,
    which is the same on the wire: for a single request, gRPC would wait without a timeout
    before calling the handler. `identify` returns whom the certificate of a caller names.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: grpc.stream_stream_rpc_method_handler(
                _streaming(path_of(method), stream, reader, identify)
            )
            if method.server_streaming
            else grpc.stream_unary_rpc_method_handler(
                _unary(path_of(method), handle, reader, identify)
            )
            for method in service.methods
        },
    )


def _unary(
    method: str,
    handle: Handle,
    reader: RequestReader,
    identify: Identify | None,
) -> Any:  # noqa: ANN401  # the type in grpc's stubs
    async def answer(_: object, context: Context) -> bytes:
        call = _call(context, identify)
        with reader.open.count():
            result = await handle(method, partial(reader.read, context), call)
        if isinstance(result, Status):
            await refuse(context, result, _trailing_metadata(call))
        context.set_trailing_metadata(_trailing_metadata(call))
        _choose_compression(context, call, result)
        return result

    return answer


def _streaming(
    method: str,
    stream: Stream,
    reader: RequestReader,
    identify: Identify | None,
) -> Any:  # noqa: ANN401  # the type in grpc's stubs
    async def answer(_: object, context: Context) -> None:
        metadata_sent = False

        async def send(response: bytes) -> None:
            nonlocal metadata_sent
            with cancelled_on_disconnect():
                if not metadata_sent:
                    # Separately from the first message: if writing both is abandoned, gRPC
                    # cannot send a status any more.
                    await context.send_initial_metadata(())
                    metadata_sent = True
                _choose_compression(context, call, response)
                await context.write(response)

        call = _call(context, identify)
        with reader.open.count():
            failure = await stream(method, partial(reader.read, context), call, send)
        if failure is not None:
            await refuse(context, failure, _trailing_metadata(call))
        context.set_trailing_metadata(_trailing_metadata(call))

    return answer


def _choose_compression(context: Context, call: Call, response: bytes) -> None:
    """Send a small response as it is. Others are compressed if the caller accepts it."""
    if len(response) <= MAX_PLAIN_BYTES or not call.compress:
        context.disable_next_message_compression()


def _call(context: Context, identify: Identify | None) -> Call:
    identity = None if identify is None else identify(context)
    metadata = context.invocation_metadata() or ()
    return Call(read_context(metadata, context.time_remaining(), identity))


def _trailing_metadata(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    metadata: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID, call.context.request_id),)
    if call.organization_revision is not None:
        metadata += (("organization-revision", str(call.organization_revision)),)
    if call.rate_limits is not None:
        metadata += tuple(zip(("ratelimit-policy", "ratelimit"), call.rate_limits, strict=True))
    return metadata
