"""The door of ordinary callers: each call is a gRPC call of its own."""

from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc.status_pb2 import Status

from service.calls import ACTOR, REQUEST_ID, Call, Handle, request_id_of

Context = grpc.aio.ServicerContext[bytes, bytes]

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def unary_handlers(service: ServiceDescriptor, handle: Handle) -> grpc.GenericRpcHandler:
    """Serve the methods of a service. Bytes go in and out: `handle` reads them."""
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(_unary(method.name, handle))
            for method in service.methods
        },
    )


def _unary(method: str, handle: Handle) -> Any:  # noqa: ANN401  # as grpc's stubs have it
    async def answer(request: bytes, context: Context) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        call = Call(
            request_id=request_id_of(str(metadata.get(REQUEST_ID, ""))),
            actor=str(metadata.get(ACTOR, "")),
            timeout=context.time_remaining(),
        )
        result = await handle(method, request, call)
        if isinstance(result, Status):
            details = ("grpc-status-details-bin", result.SerializeToString())
            await context.abort(
                _CODES[result.code], result.message, (*_trailing_metadata(call), details)
            )
        context.set_trailing_metadata(_trailing_metadata(call))
        return result

    return answer


def _trailing_metadata(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    request_id = (REQUEST_ID, call.request_id)
    if call.organization_revision is None:
        return (request_id,)
    return request_id, ("organization-revision", str(call.organization_revision))
