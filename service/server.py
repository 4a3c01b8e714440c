"""Builds the gRPC server from the settings, runs it, and shuts it down gracefully."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from appointments.relay.v1 import relay_pb2
from appointments.v1 import appointment_service_pb2, webhook_service_pb2
from google.longrunning import operations_pb2
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health

from runtime.backoff import run_forever
from runtime.helper import Helper
from runtime.metrics import serving_metrics
from runtime.tracing import tracing
from service.amqp import Broker
from service.callers import admit_to_reflection, authentication, identify
from service.grpc_server import bind_ports, new_server, stop, watched_certificates
from service.limits.buckets import RateLimit
from service.limits.limiter import RateLimiter
from service.limits.store import BucketStore
from service.metrics import Metrics
from service.operations.accepter import Accepter, OperationQueue
from service.operations.postgres.queue import PostgresQueue
from service.operations.rabbitmq.queue import RabbitMQQueue, declare_queues
from service.operations.results import OperationResults
from service.postgres.database import Database
from service.postgres.notifications import Notifier, Work
from service.postgres.schema import check_primary
from service.postgres.session import CALLER_ROLE
from service.reads.moments import Moments
from service.reads.page_cache import PageCache
from service.reads.replicas import Replicas
from service.reads.store import ReadStore
from service.reads.watch import Watch
from service.rpc.appointments import AppointmentServicer
from service.rpc.availability import AvailabilityReader
from service.rpc.channelz import serve_channelz
from service.rpc.direct import direct_handlers
from service.rpc.handler import CallHandler
from service.rpc.health import HEALTH, serve_health, set_serving, watch_readiness
from service.rpc.lists import AppointmentLists
from service.rpc.operations import OperationsServicer
from service.rpc.reflection import reflection_of
from service.rpc.relay import RelayServicer
from service.rpc.request_reader import Arrivals, RequestReader, servicer_handlers
from service.rpc.webhooks import WebhookServicer
from service.rpc.write_requests import WriteReader
from service.settings import Settings
from service.webhooks.addresses import AddressRules
from service.webhooks.encryption import SecretKeys
from service.webhooks.reencryption import check_keys
from service.webhooks.store import WebhookStore
from service.writes.committer import Committer
from service.writes.store import WriteStore

OPERATIONS = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
APPOINTMENTS = appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"]
WEBHOOKS = webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"]
RELAY = relay_pb2.DESCRIPTOR.services_by_name["RelayService"]
# Relay streams are replaced this many times as often as connections, so that a gateway's calls
# move to new addresses sooner.
STREAMS_PER_CONNECTION = 6
AVAILABILITY_HELPER = "service.rpc.availability_helper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports that the server listens on, None if switched off."""

    grpc: int
    mtls: int | None
    health: int | None
    metrics: int | None
    channelz: int | None


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Ports]:
    """Run the gRPC server while the block runs. Yields its ports.

    At the end the server reports that it is not serving, ends streams and waits for operations,
    finishes accepted calls within the grace period, then writes whose callers have
    disconnected, and closes its connections.

    Raises SchemaOutdated, DatabaseUnfit, KeysMissing, psycopg.Error, SigningKeysUnavailable,
    FilesUnfit or CannotListen if it cannot start.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(tracing("service"))
        certificates = watched_certificates(settings, metrics, stack)
        primary = await check_primary(settings.database_url, settings.timeouts, role=CALLER_ROLE)
        settings = settings.for_database(distributed=primary.distributed)
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
            # The committer has at most one call per connection in flight, the accepter and each of
            # the two notifiers one.
            max_waiting=settings.write_connections + 2,
            timeouts=settings.timeouts,
            role=CALLER_ROLE,
            replica=False,
            metrics=metrics,
            epoch=primary.epoch,
            distributed=primary.distributed,
        )
        reads = Database(
            settings.database_url,
            name="read",
            connections=settings.read_connections,
            max_waiting=settings.max_queued_reads,
            timeouts=settings.timeouts,
            role=CALLER_ROLE,
            replica=False,
            metrics=metrics,
            epoch=primary.epoch,
            distributed=primary.distributed,
        )
        replicas = Replicas(
            settings.database_read_url or "",
            connections=settings.read_connections,
            max_waiting=settings.max_queued_reads,
            timeout=settings.replica_timeout,
            metrics=metrics,
            distributed=primary.distributed,
        )
        await replicas.check()
        changes, operations = _notifiers(settings, writes)
        committer = Committer(
            WriteStore(writes, metrics, changes.notify),
            metrics,
            connections=settings.write_connections,
            max_organizations=settings.max_call_organizations,
            max_batch=settings.max_batch_writes,
            max_queued=settings.max_queued_writes,
        )
        accepter = Accepter(
            _operation_queue(settings, operations.notify, writes, stack),
            metrics,
            max_waiting=settings.max_queued_writes,
        )
        results = OperationResults(
            reads,
            metrics,
            retention=timedelta(days=settings.operation_retention_days),
            max_hold=timedelta(seconds=settings.max_hold),
            poll_interval=settings.operation_poll_interval,
            queued_elsewhere=settings.operation_queue == "rabbitmq",
        )
        helper = Helper(AVAILABILITY_HELPER)
        stack.push_async_callback(asyncio.to_thread, helper.close)
        services = _services(
            settings,
            metrics,
            committer,
            accepter,
            results,
            changed=changes.notify,
            reads=reads,
            replicas=replicas,
            helper=helper,
        )
        authenticate = await stack.enter_async_context(authentication(settings, metrics))
        rate_limiter = _rate_limiter(settings, reads)
        calls = CallHandler(
            services,
            metrics,
            timeout=settings.request_timeout,
            send_timeout=settings.watch_patience,
            authenticate=authenticate,
            rate_limiter=rate_limiter,
            max_bytes=settings.max_message_bytes,
            tracer=tracer,
        )
        relay = RelayServicer(
            calls.handle,
            metrics,
            stream_age=settings.grpc_connection_age / STREAMS_PER_CONNECTION,
            max_calls=settings.max_calls,
            send_timeout=settings.watch_patience,
        )
        health_servicer = health.aio.HealthServicer()
        server = new_server(settings)
        reader = RequestReader(Arrivals(), max_calls=settings.max_calls)
        others: dict[ServiceDescriptor, object] = {RELAY: relay, HEALTH: health_servicer}
        reflection = {} if settings.reflection == "off" else reflection_of(*others, *services)
        server.add_generic_rpc_handlers(
            tuple(
                direct_handlers(service, calls.handle, calls.stream, reader, identify(settings))
                for service in services
            )
        )
        server.add_generic_rpc_handlers(
            servicer_handlers(
                others,
                reader.arrivals,
                max_bytes=settings.max_message_bytes,
                timeout=settings.request_timeout,
            )
        )
        server.add_generic_rpc_handlers(
            servicer_handlers(
                reflection,
                reader.arrivals,
                max_bytes=settings.max_message_bytes,
                timeout=settings.request_timeout,
                admit=admit_to_reflection(settings, authenticate),
            )
        )
        grpc_port, mtls_port = bind_ports(server, settings, certificates)

        database_services = [*services, RELAY]
        # Until the database has responded.
        await set_serving(health_servicer, database_services, serving=False)
        await set_serving(
            health_servicer, {*others, *reflection} - {*database_services}, serving=True
        )
        for database in (writes, reads, replicas):
            await stack.enter_async_context(database)
        await check_keys(reads, SecretKeys(settings.secrets_keys))
        for end in (changes.close, operations.close, committer.drain, accepter.drain):
            stack.push_async_callback(end)
        health_port = await serve_health(
            health_servicer,
            settings.grpc_host,
            settings.grpc_health_port,
            stack,
            max_bytes=settings.max_message_bytes,
            request_timeout=settings.request_timeout,
        )
        await server.start()
        stack.push_async_callback(stop, server, calls, settings.shutdown_grace)
        stack.callback(relay.close)
        stack.callback(results.end_waits)
        stack.callback(calls.end_streams)
        stack.push_async_callback(health_servicer.enter_graceful_shutdown)
        if rate_limiter is not None:
            _start(
                stack, run_forever("share rate limits", rate_limiter.run, metrics.unexpected_errors)
            )
        _start(
            stack,
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
            ),
        )
        yield Ports(
            grpc=grpc_port,
            mtls=mtls_port,
            health=health_port,
            metrics=metrics_port,
            channelz=channelz_port,
        )


def _notifiers(settings: Settings, database: Database) -> tuple[Notifier, Notifier]:
    """Return those of changes and of queued operations."""
    return (
        Notifier(database, Work.CHANGES, poll_interval=settings.change_poll_interval),
        Notifier(database, Work.OPERATIONS, poll_interval=settings.operation_poll_interval),
    )


def _start(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Work in the background until the stack ends."""
    stack.callback(asyncio.create_task(work).cancel)


def _services(
    settings: Settings,
    metrics: Metrics,
    committer: Committer,
    accepter: Accepter,
    results: OperationResults,
    *,
    changed: Callable[[], None],
    reads: Database,
    replicas: Replicas,
    helper: Helper,
) -> dict[ServiceDescriptor, object]:
    """Return the servicers of the API's services."""
    store = ReadStore(reads, replicas)
    moments = Moments(reads)
    return {
        APPOINTMENTS: AppointmentServicer(
            committer,
            accepter,
            store,
            AppointmentLists(store, PageCache(moments), moments),
            AvailabilityReader(store, moments, helper),
            Watch(
                reads,
                store,
                metrics,
                interval=settings.watch_poll_interval,
                outage_timeout=settings.watch_patience,
                max_watchers=settings.max_watchers,
            ),
            WriteReader(timedelta(seconds=settings.max_hold), lambda: reads.epoch),
        ),
        OPERATIONS: OperationsServicer(
            results,
            timeout=settings.request_timeout,
        ),
        # Calls about webhooks are rare and short. They use the connections of the reads.
        WEBHOOKS: WebhookServicer(
            WebhookStore(
                reads,
                SecretKeys(settings.secrets_keys),
                changed=changed,
                most=settings.webhook_max_per_organization,
                secret_overlap=settings.webhook_secret_overlap,
            ),
            AddressRules(settings.webhook_allowed_networks),
        ),
    }


def _rate_limiter(settings: Settings, database: Database) -> RateLimiter | None:
    def limit(name: str, requests: int | None) -> RateLimit | None:
        if requests is None:
            return None
        return RateLimit(name=name, requests=requests, window=settings.rate_limit_window)

    credential = limit("credential", settings.rate_limit_per_credential)
    organization = limit("organization", settings.rate_limit_per_organization)
    if credential is None and organization is None:
        return None
    return RateLimiter(BucketStore(database), credential=credential, organization=organization)


def _operation_queue(
    settings: Settings, notify: Callable[[], None], database: Database, stack: AsyncExitStack
) -> OperationQueue:
    if settings.operation_queue == "postgres" or settings.amqp_url is None:
        return PostgresQueue(database, notify)
    broker = Broker(
        settings.amqp_url,
        name="appointments-service",
        timeout=settings.amqp_timeout,
        declare=declare_queues,
    )
    stack.push_async_callback(broker.close)
    return RabbitMQQueue(broker)
