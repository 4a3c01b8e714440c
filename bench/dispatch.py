"""`python -m bench.dispatch`: what finding the endpoint of a request costs.

The same requests, on all routes of the API, are answered by `gateway.http.router` behind
`aiohttp.web.Server` and by `aiohttp.web.Application` with its router and one middleware. There
is no network, and no endpoint that does anything. The rounds take turns; the figures are the
medians of CPU time per request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import median

import uvloop
from aiohttp import web

from gateway.http.router import Router
from gateway.transcoding.routes import SERVICES, Route, routes_of

ROUNDS, REQUESTS = 100, 300
TARGETS = (
    "GET /api/appointments/stored-17?organizationId=a",
    "GET /api/appointments?organizationId=a&from=2030-01-01T00:00:00Z",
    "POST /api/appointments",
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
CONTEXT = web.RequestKey("context", web.BaseRequest)


async def _answer(_: web.BaseRequest) -> web.Response:
    return web.Response(body=b"{}")


def no_router() -> web.Server:
    """Return a server that does not look at the path: what the others have in common."""
    return web.Server(_answer, access_log=None)


def our_router(routes: Sequence[Route]) -> web.Server:
    router: Router[Handler] = Router()
    for route in routes:
        router.add(route.http_method, route.template, _answer)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        found = router.find(request.raw_path.partition("?")[0])
        if found is None:
            raise web.HTTPNotFound
        return await found[0][request.method](request)

    return web.Server(handle, access_log=None)


class _RawPath(web.DynamicResource):
    """Matches the path as it was sent; aiohttp's own resources match it decoded."""

    async def resolve(
        self, request: web.Request
    ) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        match = self._pattern.fullmatch(request.rel_url.raw_path)
        route = self._routes.get(request.method)
        if match is None or route is None:
            return None, self._allowed_methods
        return web.UrlMappingMatchInfo(match.groupdict(), route), self._allowed_methods


async def aiohttp_application(routes: Sequence[Route]) -> web.Server:
    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        request[CONTEXT] = request
        return await handler(request)

    async def answer(request: web.Request) -> web.Response:
        return await _answer(request[CONTEXT])

    application = web.Application(middlewares=[middleware])
    resources: dict[str, web.Resource] = {}
    for route in sorted(routes, key=lambda route: -len(route.template)):
        if route.template not in resources:
            kind = _RawPath if "{" in route.template else web.PlainResource
            resources[route.template] = kind(route.template)
            application.router.register_resource(resources[route.template])
        resources[route.template].add_route(route.http_method, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("the application has no server")
    return runner.server


class _Connection(asyncio.Transport):
    """A connection to a server whose responses go nowhere."""

    def __init__(self, server: web.Server) -> None:
        super().__init__()
        self._answered: asyncio.Future[bytes] | None = None
        self._protocol = server()
        self._protocol.connection_made(self)

    async def ask(self, request: bytes) -> bytes:
        """Return the first piece of the response."""
        self._answered = asyncio.get_running_loop().create_future()
        self._protocol.data_received(request)
        return await self._answered

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(bytes(data))

    def is_closing(self) -> bool:
        return False


async def _microseconds(connection: _Connection, request: bytes) -> float:
    before = time.process_time()
    for _ in range(REQUESTS):
        if not (await connection.ask(request)).startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"not answered: {request!r}")
    return (time.process_time() - before) / REQUESTS * 1e6


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return microseconds of CPU time per request, by target and server."""
    routes = routes_of(*SERVICES)
    servers = {
        "no router": no_router(),
        "our router": our_router(routes),
        "aiohttp's": await aiohttp_application(routes),
    }
    found = {}
    for target in TARGETS:
        request = f"{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode()
        connections = {name: _Connection(server) for name, server in servers.items()}
        took: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, connection in connections.items():
                took[name].append(await _microseconds(connection, request))
        found[target] = {name: median(times) for name, times in took.items()}
    return found


def main() -> None:
    """Measure and print."""
    for target, took in uvloop.run(measure(ROUNDS)).items():
        print(target)  # noqa: T201
        for name, microseconds in took.items():
            beyond = microseconds - took["no router"]
            print(f"  {name:12} {microseconds:6.1f} µs  {beyond:+6.1f} µs")  # noqa: T201


if __name__ == "__main__":
    main()
