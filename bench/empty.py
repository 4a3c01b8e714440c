"""`python -m bench.empty gRPC|REST FILE`: a server that answers every request with a file.

It shows what gRPC and HTTP cost alone. For gRPC it is one method in `grpc.aio`, with the server
options of the service. For REST it is one handler in `aiohttp.web`, which parses the JSON of the
request and serializes that of the response.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import uvloop
from aiohttp import web

from runtime.listening import listening_socket
from runtime.logs import configure_logs
from runtime.program import run_until_stopped
from service.grpc_server import bind_ports, new_server
from service.settings import Settings

HOST = "127.0.0.1"
LARGEST_BODY = 16 * 1024 * 1024


class _EveryMethod(grpc.GenericRpcHandler):
    def __init__(self, response: bytes) -> None:
        async def answer(_request: bytes, _context: object) -> bytes:
            return response

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            answer
        )

    def service(
        self,
        handler_call_details: grpc.HandlerCallDetails,  # noqa: ARG002
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return self._handler


@asynccontextmanager
async def _serving_grpc(response: bytes) -> AsyncIterator[int]:
    settings = Settings()
    server = new_server(settings)
    server.add_generic_rpc_handlers((_EveryMethod(response),))
    port, _ = bind_ports(server, settings, None)
    await server.start()
    yield port
    await server.stop(None)


@asynccontextmanager
async def _serving_rest(response: bytes) -> AsyncIterator[int]:
    content = orjson.loads(response)

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        if body:
            orjson.loads(body)
        return web.Response(body=orjson.dumps(content), content_type="application/json")

    application = web.Application(client_max_size=LARGEST_BODY)
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    listening = listening_socket(HOST, 0, backlog=1024)
    await web.SockSite(runner, listening, backlog=1024).start()
    yield listening.getsockname()[1]
    await runner.cleanup()


def main() -> None:
    """Run until a signal."""
    _, interface, file = sys.argv
    configure_logs("bench.empty", level="warning", format="json")
    serving = {"gRPC": _serving_grpc, "REST": _serving_rest}[interface]
    uvloop.run(run_until_stopped(serving(Path(file).read_bytes()), lambda port: {"port": port}))


if __name__ == "__main__":
    main()
