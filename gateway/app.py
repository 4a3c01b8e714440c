"""Builds a gateway from its settings, starts it and stops it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp.web import ServerRunner, SockSite
from appointments.v1 import appointment_service_pb2, webhook_service_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc.status_pb2 import Status
from grpc import aio

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
    document_page,
    viewer_pages,
)
from gateway.endpoints.rpc import CallDependencies, CallEndpoint
from gateway.http.bodies import BodyReader
from gateway.http.handler import Endpoint, HttpHandler
from gateway.http.in_flight import InFlight
from gateway.http.problems import StatusConverter
from gateway.http.router import Router
from gateway.http.server import HttpServer, Timeouts
from gateway.http.streams import Streams
from gateway.metrics import Metrics
from gateway.openapi.document import openapi_document
from gateway.settings import Settings
from gateway.transcoding.routes import batch_of, location_template, routes_of
from gateway.upstream.channels import open_channel
from gateway.upstream.client import ServiceClient
from gateway.upstream.relay import Relay
from gateway.upstream.watch import Watch
from runtime.listening import listen_on, listening_socket
from runtime.metrics import serving_metrics

# The health of the first service decides whether the gateway is ready.
SERVICES: tuple[ServiceDescriptor, ...] = (
    appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"],
    webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
)

_CONNECTION_BACKLOG = 1024
# Bodies that may be received at the same time, per call that may be in flight.
_BODIES_PER_CALL = 4


def build_router(
    channels: Sequence[aio.Channel],
    relays: Sequence[Relay],
    settings: Settings,
    bodies: BodyReader,
    *,
    in_flight: InFlight,
    waiting: InFlight,
    streams: Streams,
    metrics: Metrics,
) -> Router[Endpoint]:
    """Create the endpoints of all routes and pages."""
    routes = routes_of(*SERVICES)
    statuses = StatusConverter(
        frozenset(route.body for route in routes if route.body not in {"", "*"})
    )
    service = ServiceClient(relays, statuses)
    operations = OperationResponses(statuses)
    shared = CallDependencies(
        service=service,
        bodies=bodies,
        receiving=InFlight(_BODIES_PER_CALL * settings.gateway_max_in_flight),
        in_flight=in_flight,
        waiting=waiting,
        operations=operations,
        special={Status.DESCRIPTOR.full_name: statuses.render},
    )
    watch = Watch(
        channels,
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
    router.add("GET", OPERATION_PATH, OperationEndpoint(service, operations, in_flight, waiting))
    router.add("GET", OPERATIONS_PATH, OperationsEndpoint(service, operations, in_flight))
    router.add("GET", "/healthz", LivenessEndpoint())
    router.add("GET", "/readyz", ReadinessEndpoint(channels[0], SERVICES[0].full_name))
    router.add("GET", DOCUMENT_PATH, document_page(openapi_document(SERVICES, routes)))
    for path, page in viewer_pages().items():
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

    Raises `CannotListen`.
    """
    async with AsyncExitStack() as closing:
        in_flight = InFlight(settings.gateway_max_in_flight)
        waiting = InFlight(
            settings.gateway_max_in_flight, "Too many requests are waiting for operations."
        )
        streams = Streams(settings.gateway_max_streams)
        metrics = Metrics(lambda: in_flight.count + waiting.count, lambda: streams.count)
        channels: list[aio.Channel] = []
        relays: list[Relay] = []
        for _ in range(settings.service_connections):
            channel = open_channel(settings.service_address)
            closing.push_async_callback(channel.close)
            channels.append(channel)
            relay = Relay(
                channel,
                timeout=settings.gateway_timeout,
                max_message_bytes=settings.max_message_bytes,
                errors=metrics.unexpected_errors,
            )
            closing.push_async_callback(relay.close)
            relays.append(relay)
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
        router = build_router(
            channels,
            relays,
            settings,
            bodies,
            in_flight=in_flight,
            waiting=waiting,
            streams=streams,
            metrics=metrics,
        )
        handler = HttpHandler(router, bodies, metrics)
        timeouts = Timeouts(
            idle=settings.gateway_keepalive_timeout, headers=settings.gateway_header_timeout
        )
        runner = ServerRunner(
            HttpServer(handler, timeouts, asyncio.get_running_loop()),
            shutdown_timeout=settings.gateway_shutdown_grace,
        )
        await runner.setup()
        closing.push_async_callback(runner.cleanup)
        closing.callback(streams.close)
        sockets, port = listen_on(
            settings.gateway_host,
            settings.gateway_port,
            _socket,
            settings="GATEWAY_HOST, GATEWAY_PORT",
        )
        for listening in sockets:
            await SockSite(runner, listening, backlog=_CONNECTION_BACKLOG).start()
        yield Listening(port=port, metrics_port=metrics_port, in_flight=in_flight)


def _socket(address: str, port: int) -> tuple[socket.socket, int]:
    listening = listening_socket(address, port, backlog=_CONNECTION_BACKLOG)
    return listening, listening.getsockname()[1]
