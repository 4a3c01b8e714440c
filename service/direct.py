"""The door of ordinary callers: each call is a gRPC call of its own."""

from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc.status_pb2 import Status

from service.calls import ACTOR, REQUEST_ID, Call, Handle, Stream, request_id_of

Context = grpc.aio.ServicerContext[bytes, bytes]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def direct_handlers(
    service: ServiceDescriptor, handle: Handle, stream: Stream
) -> grpc.GenericRpcHandler:
    """Serve the methods of a service that take one request.

    Bytes go in and out: `handle` reads them, or `stream` where responses are a stream.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: grpc.unary_stream_rpc_method_handler(_streaming(method.name, stream))
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler(_unary(method.name, handle))
            for method in service.methods
        },
    )


def _unary(method: str, handle: Handle) -> Any:  # noqa: ANN401  # as grpc's stubs have it
    async def answer(request: bytes, context: Context) -> bytes:
        call = _call(context)
        result = await handle(method, request, call)
        if isinstance(result, Status):
            await _refuse(context, call, result)
        context.set_trailing_metadata(_trailing_metadata(call))
        return result

    return answer


def _streaming(method: str, stream: Stream) -> Any:  # noqa: ANN401  # as grpc's stubs have it
    async def answer(request: bytes, context: Context) -> None:
        begun = False

        async def send(response: bytes) -> None:
            nonlocal begun
            if not begun:
                # By itself: a status cannot follow metadata whose message was given up.
                await context.send_initial_metadata(())
                begun = True
            await context.write(response)

        call = _call(context)
        failure = await stream(method, request, call, send)
        if failure is not None:
            await _refuse(context, call, failure)
        context.set_trailing_metadata(_trailing_metadata(call))

    return answer


def _call(context: Context) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    return Call(
        request_id=request_id_of(str(metadata.get(REQUEST_ID, ""))),
        actor=str(metadata.get(ACTOR, "")),
        timeout=context.time_remaining(),
    )


async def _refuse(context: Context, call: Call, status: Status) -> NoReturn:
    details = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(_CODES[status.code], status.message, (*_trailing_metadata(call), details))


def _trailing_metadata(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    request_id = (REQUEST_ID, call.request_id)
    if call.organization_revision is None:
        return (request_id,)
    return request_id, ("organization-revision", str(call.organization_revision))
