"""Builds a gateway from its settings, starts it and stops it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from aiohttp.web import ServerRunner
from google.rpc.status_pb2 import Status

from gateway.endpoints.calendar import CALENDAR_PATH, CalendarEndpoint, calendar_route
from gateway.endpoints.changes import ChangesEndpoint
from gateway.endpoints.operations import (
    OPERATION_PATH,
    OPERATIONS_PATH,
    OperationEndpoint,
    OperationResponses,
    OperationsEndpoint,
)
from gateway.endpoints.pages import (
    DOCUMENT_PATH,
    LivenessEndpoint,
    ReadinessEndpoint,
    calendar_pages,
    document_page,
    viewer_pages,
)
from gateway.endpoints.rpc import CallDependencies, CallEndpoint
from gateway.http.bodies import BodyReader
from gateway.http.cors import CrossOrigin
from gateway.http.handler import Endpoint, HttpHandler
from gateway.http.https import Https
from gateway.http.in_flight import InFlight
from gateway.http.router import Router
from gateway.http.server import HttpServer, Timeouts
from gateway.http.streams import Streams
from gateway.metrics import Metrics
from gateway.openapi.document import openapi_document
from gateway.rendering_helper import MODULE, Renderer, status_converter
from gateway.settings import Settings
from gateway.transcoding.routes import SERVICES, batch_of, location_template, routes_of
from gateway.upstream.channels import Connection
from gateway.upstream.client import ServiceClient
from gateway.upstream.relay import Relay
from gateway.upstream.watch import Watch
from runtime.backoff import run_forever
from runtime.helper import Helper
from runtime.listening import listen_on, listening_socket
from runtime.metrics import serving_metrics
from runtime.tls import Certificates, CertificateWatch
from runtime.tracing import tracing

_CONNECTION_BACKLOG = 1024
# Bodies that may be received at the same time, per call that may be in flight.
_BODIES_PER_CALL = 4
# Calendars that may be sent at the same time. Each holds a page of up to some megabytes.
_MAX_CALENDARS = 64


def build_router(
    connection: Connection,
    relay: Relay,
    settings: Settings,
    bodies: BodyReader,
    *,
    in_flight: InFlight,
    waiting: InFlight,
    streams: Streams,
    metrics: Metrics,
    renderer: Renderer,
) -> Router[Endpoint]:
    """Create the endpoints of all routes and pages."""
    routes = routes_of(*SERVICES)
    statuses = status_converter(routes)
    service = ServiceClient(relay, statuses)
    operations = OperationResponses(statuses)
    shared = CallDependencies(
        service=service,
        bodies=bodies,
        receiving=InFlight(_BODIES_PER_CALL * settings.gateway_max_in_flight),
        in_flight=in_flight,
        waiting=waiting,
        parsing=asyncio.Lock(),
        operations=operations,
        special={Status.DESCRIPTOR.full_name: statuses.render},
        render_elsewhere=renderer,
    )
    watch = Watch(
        connection,
        timeout=settings.gateway_timeout,
        heartbeat=settings.gateway_heartbeat_interval,
        outage_timeout=settings.watch_patience,
    )
    router: Router[Endpoint] = Router()
    for route in routes:
        call = CallEndpoint(
            route, shared, location_template(route, routes), batch_of(route, routes)
        )
        endpoint = (
            ChangesEndpoint(
                route,
                call,
                watch,
                statuses,
                streams=streams,
                metrics=metrics,
                reader_timeout=settings.watch_patience,
            )
            if route.stream
            else call
        )
        router.add(route.http_method, route.template, endpoint)
    calendar = CalendarEndpoint(
        calendar_route(routes),
        service,
        in_flight=in_flight,
        sending=InFlight(_MAX_CALENDARS, "Too many calendars are being sent."),
        reader_timeout=settings.watch_patience,
    )
    router.add("GET", CALENDAR_PATH, calendar)
    router.add("GET", OPERATION_PATH, OperationEndpoint(service, operations, in_flight, waiting))
    router.add("GET", OPERATIONS_PATH, OperationsEndpoint(service, operations, in_flight))
    router.add("GET", "/healthz", LivenessEndpoint())
    router.add("GET", "/readyz", ReadinessEndpoint(connection, SERVICES[0].full_name))
    if settings.gateway_docs == "on":
        router.add("GET", DOCUMENT_PATH, document_page(openapi_document(SERVICES, routes)))
        for path, page in viewer_pages().items():
            router.add("GET", path, page)
    if settings.gateway_page == "on":
        for path, page in calendar_pages().items():
            router.add("GET", path, page)
    return router


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """A running gateway's ports. `metrics_port` is None if it serves no metrics."""

    port: int
    metrics_port: int | None
    in_flight: InFlight


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Listening]:
    """Serve while the block runs. Then end the streams, and wait for requests in flight up to
    GATEWAY_SHUTDOWN_GRACE.

    Raises `CannotListen` or `FilesUnfit`.
    """
    async with AsyncExitStack() as closing:
        tracer = await closing.enter_async_context(tracing("gateway"))
        in_flight = InFlight(settings.gateway_max_in_flight)
        waiting = InFlight(
            settings.gateway_max_in_flight, "Too many requests are waiting for operations."
        )
        streams = Streams(settings.gateway_max_streams)
        metrics = Metrics(lambda: in_flight.count + waiting.count, lambda: streams.count)
        connection = _connection(settings, metrics, closing)
        relay = Relay(
            connection,
            timeout=settings.gateway_timeout,
            max_message_bytes=settings.max_message_bytes,
            errors=metrics.unexpected_errors,
        )
        closing.push_async_callback(relay.close)
        metrics_port = await closing.enter_async_context(
            serving_metrics(
                metrics.registry,
                settings.gateway_host,
                settings.gateway_metrics_port,
                settings="GATEWAY_HOST, GATEWAY_METRICS_PORT",
            )
        )
        bodies = BodyReader(
            max_bytes=settings.gateway_max_body_bytes, timeout=settings.gateway_body_timeout
        )
        helper = Helper(MODULE)
        closing.push_async_callback(asyncio.to_thread, helper.close)
        router = build_router(
            connection,
            relay,
            settings,
            bodies,
            in_flight=in_flight,
            waiting=waiting,
            streams=streams,
            metrics=metrics,
            renderer=Renderer(helper),
        )
        origins = settings.gateway_cors_origins
        handler = HttpHandler(
            router, bodies, metrics, CrossOrigin(origins) if origins else None, tracer
        )
        timeouts = Timeouts(
            idle=settings.gateway_keepalive_timeout, headers=settings.gateway_header_timeout
        )
        loop = asyncio.get_running_loop()
        server = HttpServer(handler, timeouts, loop)
        runner = ServerRunner(server, shutdown_timeout=settings.gateway_shutdown_grace)
        await runner.setup()
        closing.push_async_callback(runner.cleanup)
        closing.callback(streams.close)
        https = _https(settings, metrics, closing)
        sockets, port = listen_on(
            settings.gateway_host,
            settings.gateway_port,
            _socket,
            settings="GATEWAY_HOST, GATEWAY_PORT",
        )
        for listening in sockets:
            # Not with aiohttp's site, which gives a handshake a minute.
            opened = await loop.create_server(
                server,
                sock=listening,
                backlog=_CONNECTION_BACKLOG,
                ssl=https.context if https else None,
                ssl_handshake_timeout=timeouts.headers if https else None,
            )
            closing.callback(opened.close)
        yield Listening(port=port, metrics_port=metrics_port, in_flight=in_flight)


def _connection(settings: Settings, metrics: Metrics, closing: AsyncExitStack) -> Connection:
    """Open the connection to the service. With TLS it is replaced at each renewal."""
    files = settings.service_tls_files
    watch = CertificateWatch(files, metrics.certificate_expiry) if files else None
    connection = Connection(
        settings.service_address,
        watch.current if watch else None,
        settings.service_tls_server_name,
    )
    closing.push_async_callback(connection.close)
    if watch is not None:
        _follow("watch the service's certificates", watch, connection.replace, metrics, closing)
    return connection


def _https(settings: Settings, metrics: Metrics, closing: AsyncExitStack) -> Https | None:
    """Return the TLS of the HTTP server, which is renewed with its files, None without TLS."""
    files = settings.https_files
    if files is None or files.pair is None:
        return None
    watch = CertificateWatch(files, metrics.certificate_expiry)
    https = Https(files.pair)
    _follow("watch the gateway's certificates", watch, https.renew, metrics, closing)
    return https


def _follow(
    loop: str,
    watch: CertificateWatch,
    use: Callable[[Certificates], Awaitable[None]],
    metrics: Metrics,
    closing: AsyncExitStack,
) -> None:
    """Pass on renewed certificates in the background."""
    task = asyncio.create_task(
        run_forever(loop, partial(watch.follow, use), metrics.unexpected_errors)
    )
    closing.callback(task.cancel)


def _socket(address: str, port: int) -> tuple[socket.socket, int]:
    listening = listening_socket(address, port, backlog=_CONNECTION_BACKLOG)
    return listening, listening.getsockname()[1]
