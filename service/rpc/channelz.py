"""Channelz: a gRPC service that shows this process's channels and sockets to tools."""

from contextlib import AsyncExitStack

import grpc
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1._async import ChannelzServicer

from service.rpc.listening import bind
from service.rpc.reflection import reflection_of
from service.rpc.request_reader import SERVER_OPTIONS, Arrivals, servicer_handlers

CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]


async def serve_channelz(
    port: int | None, stack: AsyncExitStack, *, max_bytes: int, request_timeout: float
) -> int | None:
    """Serve channelz with reflection, on loopback only. Returns the port, None without one."""
    if port is None:
        return None
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *SERVER_OPTIONS])
    server.add_generic_rpc_handlers(
        servicer_handlers(
            {CHANNELZ: ChannelzServicer(), **reflection_of(CHANNELZ)},
            Arrivals(),
            max_bytes=max_bytes,
            timeout=request_timeout,
        )
    )
    bound = bind(server, "localhost", port, settings="CHANNELZ_PORT")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return bound
