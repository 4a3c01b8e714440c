"""The wiring: settings in, a running server out, and its orderly end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import grpc
from appointments.relay.v1 import relay_pb2
from appointments.v1 import appointment_service_pb2, webhook_service_pb2
from google.longrunning import operations_pb2
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2

from runtime.backoff import run_forever
from runtime.listening import serve_metrics
from service.amqp import Broker
from service.metrics import Metrics
from service.operations.accepter import Accepter, OperationQueue
from service.operations.postgres.queue import PostgresQueue
from service.operations.rabbitmq.queue import RabbitMQQueue, declare_queues
from service.operations.results import OperationResults
from service.postgres.database import Database
from service.postgres.schema import check_primary
from service.reads.moments import Moments
from service.reads.page_cache import PageCache
from service.reads.replicas import Replicas
from service.reads.store import ReadStore
from service.reads.watch import Watch
from service.rpc.appointments import AppointmentServicer
from service.rpc.channelz import serve_channelz
from service.rpc.direct import direct_handlers
from service.rpc.handler import CallHandler
from service.rpc.health import set_serving, watch_readiness
from service.rpc.listening import bind
from service.rpc.operations import OperationsServicer
from service.rpc.reflection import with_reflection
from service.rpc.relay import RelayServicer
from service.rpc.request_reader import SERVER_OPTIONS, RequestReader, servicer_handlers
from service.rpc.webhooks import WebhookServicer
from service.settings import Settings
from service.webhooks.addresses import AddressRules
from service.webhooks.store import WebhookStore
from service.writes.committer import Committer
from service.writes.store import WriteStore

OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
APPOINTMENTS = appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"]
WEBHOOKS = webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"]
RELAY = relay_pb2.DESCRIPTOR.services_by_name["RelayService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
# A gateway's calls move from one address to the next more often than connections end.
STREAMS_OF_A_CONNECTION = 6
# Seconds that streams go on with a connection that takes no more calls.
OLD_STREAM_TIME = 3600
# Seconds that the last answers have to leave.
LEAVING_TIME = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where the server listens; None for what is switched off."""

    grpc: int
    metrics: int | None
    channelz: int | None


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Ports]:
    """Run the gRPC server with everything behind it.

    On leaving, it turns unready, ends the streams and the waiting, finishes the calls that
    it has accepted (up to the grace), then the writes whose callers have gone, then closes
    its connections.

    Raises SchemaOutdated, DatabaseUnfit, psycopg.Error or CannotListen if it cannot start.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        await check_primary(settings.database_url, settings.timeouts)
        metrics_port = None
        if settings.metrics_port is not None:
            metrics_port, stop_metrics = serve_metrics(
                metrics.registry,
                settings.grpc_host,
                settings.metrics_port,
                settings="GRPC_HOST, METRICS_PORT",
            )
            stack.push_async_callback(asyncio.to_thread, stop_metrics)
        channelz_port = await serve_channelz(
            settings.channelz_port,
            stack,
            max_bytes=settings.max_message_bytes,
            request_timeout=settings.request_timeout,
        )

        writes = Database(
            settings.database_url,
            name="write",
            connections=settings.write_connections,
            # The committer has one call in flight for each connection at most, the accepter one.
            max_waiting=settings.write_connections,
            timeouts=settings.timeouts,
            replica=False,
            metrics=metrics,
        )
        reads = Database(
            settings.database_url,
            name="read",
            connections=settings.read_connections,
            max_waiting=settings.max_queued_reads,
            timeouts=settings.timeouts,
            replica=False,
            metrics=metrics,
        )
        replicas = Replicas(
            settings.database_read_url or "",
            connections=settings.read_connections,
            max_waiting=settings.max_queued_reads,
            timeout=settings.replica_timeout,
            metrics=metrics,
        )
        await replicas.check()
        committer = Committer(
            WriteStore(writes, metrics),
            metrics,
            connections=settings.write_connections,
            max_organizations=settings.max_call_organizations,
            max_batch=settings.max_batch_writes,
            max_queued=settings.max_queued_writes,
        )
        accepter = Accepter(
            _operation_queue(settings, writes, stack),
            metrics,
            max_waiting=settings.max_queued_writes,
        )
        results = OperationResults(
            reads,
            metrics,
            retention=timedelta(days=settings.operation_retention_days),
            poll_interval=settings.operation_poll_interval,
            queued_elsewhere=settings.operation_queue == "rabbitmq",
        )
        services = _services(
            settings, metrics, committer, accepter, results, reads=reads, replicas=replicas
        )
        calls = CallHandler(
            services,
            metrics,
            timeout=settings.request_timeout,
            send_timeout=settings.watch_patience,
        )
        relay = RelayServicer(
            calls.handle, metrics, stream_age=settings.grpc_connection_age / STREAMS_OF_A_CONNECTION
        )
        health_servicer = health.aio.HealthServicer()
        server = _server(settings)
        reader = RequestReader(max_calls=settings.max_calls, max_bytes=settings.max_message_bytes)
        others = with_reflection({RELAY: relay, HEALTH: health_servicer}, *services)
        server.add_generic_rpc_handlers(
            tuple(
                direct_handlers(service, calls.handle, calls.stream, reader) for service in services
            )
        )
        server.add_generic_rpc_handlers(
            servicer_handlers(
                others,
                max_bytes=settings.max_message_bytes,
                timeout=settings.request_timeout,
            )
        )
        port = bind(server, settings.grpc_host, settings.grpc_port, settings="GRPC_HOST, GRPC_PORT")

        in_need = [*services, RELAY]
        await set_serving(
            health_servicer, in_need, serving=False
        )  # until the database has answered
        await set_serving(health_servicer, others.keys() - in_need, serving=True)
        for database in (writes, reads, replicas):
            await stack.enter_async_context(database)
        stack.push_async_callback(committer.drain)
        stack.push_async_callback(accepter.drain)
        await server.start()
        stack.push_async_callback(_stop, server, calls, settings.shutdown_grace)
        stack.callback(relay.close)
        stack.callback(results.end_waits)
        stack.callback(calls.end_streams)
        stack.push_async_callback(health_servicer.enter_graceful_shutdown)
        readiness = asyncio.create_task(
            run_forever(
                "watch readiness",
                partial(
                    watch_readiness,
                    in_need,
                    health_servicer,
                    reads,
                    probe_timeout=settings.connection_timeout,
                ),
                metrics.unexpected_errors,
            )
        )
        stack.callback(readiness.cancel)
        yield Ports(grpc=port, metrics=metrics_port, channelz=channelz_port)


def _services(
    settings: Settings,
    metrics: Metrics,
    committer: Committer,
    accepter: Accepter,
    results: OperationResults,
    *,
    reads: Database,
    replicas: Replicas,
) -> dict[ServiceDescriptor, object]:
    """Make the servicers of all services that callers know."""
    store = ReadStore(reads, replicas)
    return {
        APPOINTMENTS: AppointmentServicer(
            committer,
            accepter,
            store,
            PageCache(Moments(reads, max_waiting=settings.max_queued_reads)),
            Watch(
                reads,
                store,
                metrics,
                interval=settings.watch_poll_interval,
                outage_timeout=settings.watch_patience,
                max_watchers=settings.max_watchers,
            ),
        ),
        OPERATIONS: OperationsServicer(
            results,
            timeout=settings.request_timeout,
        ),
        # Rare and short, so they share the connections of the reads, not the committer's.
        WEBHOOKS: WebhookServicer(
            WebhookStore(
                reads,
                most=settings.webhook_max_per_organization,
                secret_overlap=settings.webhook_secret_overlap,
            ),
            AddressRules(settings.webhook_allowed_networks),
        ),
    }


def _server(settings: Settings) -> grpc.aio.Server:
    return grpc.aio.server(
        options=[
            *SERVER_OPTIONS,
            # On a port in use it must fail to start, not share it silently.
            ("grpc.so_reuseport", 0),
            # Then its caller makes another, to whatever process or address there is by then;
            # calls under way are finished on the old one.
            ("grpc.max_connection_age_ms", int(settings.grpc_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", int(OLD_STREAM_TIME * 1000)),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # Beyond a thousand calls that wait to be taken gRPC would cancel some without a
            # word; they are to be refused by us, as overload.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 100_000),
            # Callers ping every 10 seconds at most, as gRPC's libraries see to, and on
            # connections without a call too: half of that leaves room for jitter.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A caller whose machine or network is gone closes nothing, and its watchers
            # would keep their places for two hours.
            ("grpc.keepalive_time_ms", 15_000),
            ("grpc.http2.ping_timeout_ms", 10_000),  # not keepalive_timeout_ms
            ("grpc.http2.max_pings_without_data", 0),
        ],
    )


def _operation_queue(
    settings: Settings, database: Database, stack: AsyncExitStack
) -> OperationQueue:
    if settings.operation_queue == "postgres" or settings.amqp_url is None:
        return PostgresQueue(database)
    broker = Broker(
        settings.amqp_url,
        name="appointments-service",
        timeout=settings.amqp_timeout,
        declare=declare_queues,
    )
    stack.push_async_callback(broker.close)
    return RabbitMQQueue(broker)


async def _stop(server: grpc.aio.Server, calls: CallHandler, grace: float) -> None:
    """Finish all calls, up to the grace (seconds).

    Streams have been ended, but one whose caller reads nothing could not be told: such
    are not waited for once all else is done, and its answers had their time to leave.
    """
    stopping = asyncio.create_task(server.stop(grace))
    was_busy = True
    while not (await asyncio.wait({stopping}, timeout=LEAVING_TIME))[0]:
        busy = calls.under_way > 0
        if not busy and not was_busy:
            await server.stop(None)
        was_busy = busy
