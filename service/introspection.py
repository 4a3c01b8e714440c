"""What tools ask a server about itself: its services by reflection, its sockets by channelz."""

from contextlib import AsyncExitStack
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from service.listening import bind


async def serve_channelz(port: int | None, stack: AsyncExitStack) -> int | None:
    """Serve channelz, which shows this process's sockets, on loopback only. Returns the port."""
    if port is None:
        return None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    channelz.add_channelz_servicer(server)
    add_reflection(server, "grpc.channelz.v1.Channelz")
    bound = bind(server, "127.0.0.1", port)
    await server.start()
    stack.push_async_callback(server.stop, None)
    return bound


def add_reflection(server: grpc.aio.Server, *services: str) -> None:
    """Serve reflection as v1 and as v1alpha, which differ in nothing but the name."""
    names = (*services, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    servicer: Any = ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
            ),
        )
    )
