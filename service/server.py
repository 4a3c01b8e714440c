"""Builds the gRPC server from the settings, runs it, and shuts it down gracefully."""

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
from runtime.metrics import serving_metrics
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
# Relay streams are replaced this many times as often as connections, so that a gateway's calls
# move to new addresses sooner.
STREAMS_PER_CONNECTION = 6
# Seconds for which streams continue on a connection that accepts no new calls.
OLD_CONNECTION_GRACE = 3600
# Seconds between checks for running calls during shutdown; the last responses are sent meanwhile.
STOP_CHECK_INTERVAL = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports that the server listens on, None if switched off."""

    grpc: int
    metrics: int | None
    channelz: int | None


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Ports]:
    """Run the gRPC server while the block runs. Yields its ports.

    At the end the server reports that it is not serving, ends streams and waits for operations,
    finishes accepted calls within the grace period, then writes whose callers have
    disconnected, and closes its connections.

    Raises SchemaOutdated, DatabaseUnfit, psycopg.Error or CannotListen if it cannot start.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        await check_primary(settings.database_url, settings.timeouts)
        metrics_port = await stack.enter_async_context(
            serving_metrics(
                metrics.registry,
                settings.grpc_host,
                settings.metrics_port,
                settings="GRPC_HOST, METRICS_PORT",
            )
        )
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
            # The committer has at most one call per connection in flight, the accepter one.
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
            calls.handle, metrics, stream_age=settings.grpc_connection_age / STREAMS_PER_CONNECTION
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

        database_services = [*services, RELAY]
        # Until the database has responded.
        await set_serving(health_servicer, database_services, serving=False)
        await set_serving(health_servicer, others.keys() - database_services, serving=True)
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
                    database_services,
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
    """Return the servicers of the API's services."""
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
        # Calls about webhooks are rare and short. They use the connections of the reads.
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
            # If the port is in use, fail to start instead of sharing it.
            ("grpc.so_reuseport", 0),
            # After this age the caller opens a new connection, perhaps to another process or
            # address. Running calls are finished on the old one.
            ("grpc.max_connection_age_ms", int(settings.grpc_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", int(OLD_CONNECTION_GRACE * 1000)),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # By default gRPC cancels calls beyond 1,000 pending ones without a reason. The
            # service refuses them as Overloaded instead.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 100_000),
            # gRPC's libraries let callers ping every 10 seconds at most, also on connections
            # without a call. Half of that leaves room for jitter.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Detects a caller whose machine or network has failed. Otherwise its watchers would
            # count towards the limit for two hours.
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
    """Stop the server after all calls are finished, within `grace` (seconds).

    A stream cannot end if its caller reads nothing. Such streams are cancelled when no other
    call has been running for one STOP_CHECK_INTERVAL, in which the last responses are sent.
    """
    stopping = asyncio.create_task(server.stop(grace))
    was_busy = True
    while not (await asyncio.wait({stopping}, timeout=STOP_CHECK_INTERVAL))[0]:
        busy = calls.under_way > 0
        if not busy and not was_busy:
            await server.stop(None)
        was_busy = busy
