"""A worker runs the background tasks. Any number of worker processes can run at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from runtime.backoff import run_forever
from runtime.metrics import serving_metrics
from runtime.tracing import tracing
from service.amqp import Broker
from service.events.publisher import EventPublisher
from service.events.rabbitmq import declare_exchange
from service.events.store import EventStore
from service.metrics import Metrics
from service.operations.postgres.worker import LOOP as POSTGRES_LOOP
from service.operations.postgres.worker import PostgresQueueWorker
from service.operations.rabbitmq.applier import LOOP as RABBITMQ_LOOP
from service.operations.rabbitmq.worker import RabbitMQQueueWorker
from service.postgres.database import Database
from service.postgres.history_size import HistorySize
from service.postgres.notifications import Listener, Notifier, Work
from service.postgres.purge import Purge
from service.postgres.schema import check_primary
from service.postgres.session import WORKER_ROLE
from service.reads.store import ReadStore
from service.settings import Settings
from service.webhooks.addresses import AddressRules
from service.webhooks.claims import ClaimStore
from service.webhooks.delivery import LOOP as WEBHOOK_LOOP
from service.webhooks.delivery import Deliverer, DeliverySettings
from service.webhooks.encryption import SecretKeys
from service.webhooks.reencryption import check_keys
from service.writes.committer import Committer
from service.writes.expiry import BATCH, MAX_WRITES, Expiry
from service.writes.expiry import LOOP as EXPIRY_LOOP
from service.writes.store import WriteStore

# Beside WORKER_CONNECTIONS, so that a wait for an organization's lock delays no other task: one
# for calls that organizations share, one for an organization whose lock is held.
EXPIRY_CONNECTIONS = 2

# Runs until it is cancelled, then finishes or releases what it has begun.
BackgroundTask = Callable[[], Awaitable[None]]


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[int | None]:
    """Run all background tasks while the block runs. Yields the port of the metrics, if any.

    Raises SchemaOutdated, DatabaseUnfit, KeysMissing, psycopg.Error or CannotListen if it cannot
    start.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tracing("worker"))
        primary = await check_primary(settings.database_url, settings.timeouts, role=WORKER_ROLE)
        settings = settings.for_database(distributed=primary.distributed)
        port = await stack.enter_async_context(
            serving_metrics(
                metrics.registry,
                settings.grpc_host,
                settings.worker_metrics_port,
                settings="GRPC_HOST, WORKER_METRICS_PORT",
            )
        )
        database, expiry_database = [
            await stack.enter_async_context(
                Database(
                    settings.database_url,
                    name=name,
                    connections=connections,
                    max_waiting=settings.max_queued_reads,
                    timeouts=settings.timeouts,
                    role=WORKER_ROLE,
                    replica=False,
                    metrics=metrics,
                    epoch=primary.epoch,
                    distributed=primary.distributed,
                )
            )
            for name, connections in (
                ("worker", settings.worker_connections),
                ("expiry", EXPIRY_CONNECTIONS),
            )
        ]
        await check_keys(database, SecretKeys(settings.secrets_keys))
        listener = Listener(settings.database_url, database, settings.timeouts, metrics)
        changes = Notifier(database, Work.CHANGES, poll_interval=settings.change_poll_interval)
        stack.push_async_callback(changes.close)
        background = _postgres_tasks(settings, database, metrics, listener, changes)
        background["listen for work"] = listener.run
        background[EXPIRY_LOOP] = Expiry(
            database,
            Committer(
                WriteStore(expiry_database, metrics, changes.notify),
                metrics,
                connections=EXPIRY_CONNECTIONS,
                max_organizations=settings.max_call_organizations,
                max_batch=MAX_WRITES,
                max_queued=10 * BATCH,
            ),
            metrics,
            listener.wakeup(Work.CHANGES),
        ).run
        if settings.amqp_url is not None:
            background |= _rabbitmq_tasks(
                settings,
                settings.amqp_url,
                database,
                metrics,
                listener=listener,
                changes=changes,
                stack=stack,
            )
        tasks = [
            asyncio.create_task(run_forever(name, run, metrics.unexpected_errors))
            for name, run in background.items()
        ]
        stack.push_async_callback(_cancel, tasks)
        yield port


def _postgres_tasks(
    settings: Settings,
    database: Database,
    metrics: Metrics,
    listener: Listener,
    changes: Notifier,
) -> dict[str, BackgroundTask]:
    operations = PostgresQueueWorker(
        database,
        metrics,
        wakeup=listener.wakeup(Work.OPERATIONS),
        changed=changes.notify,
        # One connection is left for the other tasks.
        concurrency=settings.worker_connections - 1,
        max_organizations=settings.max_call_organizations,
        max_batch=settings.max_batch_writes,
        lease=max(settings.operation_lease, 2 * settings.statement_timeout),
        poll_interval=settings.operation_poll_interval,
    )
    tasks: dict[str, BackgroundTask] = {}
    if not database.distributed:  # its files are on the nodes
        tasks["measure the history"] = HistorySize(database, metrics).run
    return tasks | {
        POSTGRES_LOOP: operations.run,
        "count operations": operations.count,
        "purge operations": Purge(
            database,
            table="operations",
            time="finished_at",
            keep=timedelta(days=settings.operation_retention_days),
        ).run,
        "purge notes of purged organizations": Purge(
            database,
            table="purged_organizations",
            time="purged_at",
            keep=timedelta(days=settings.operation_retention_days),
        ).run,
        WEBHOOK_LOOP: Deliverer(
            ClaimStore(
                database,
                lease=settings.webhook_lease,
                give_up_after=settings.webhook_give_up_after,
            ),
            ReadStore(database, None),
            AddressRules(settings.webhook_allowed_networks),
            SecretKeys(settings.secrets_keys),
            metrics,
            wakeup=listener.wakeup(Work.CHANGES),
            settings=DeliverySettings(
                slots=settings.webhook_concurrency,
                poll_interval=settings.webhook_poll_interval,
                lease=settings.webhook_lease,
                timeout=settings.webhook_timeout,
                first_retry=settings.webhook_first_retry,
                longest_retry=settings.webhook_longest_retry,
            ),
        ).run,
        "purge webhook deliveries": Purge(
            database,
            table="webhook_deliveries",
            time="attempted_at",
            keep=timedelta(seconds=settings.webhook_log_retention),
        ).run,
    }


def _rabbitmq_tasks(
    settings: Settings,
    url: str,
    database: Database,
    metrics: Metrics,
    *,
    listener: Listener,
    changes: Notifier,
    stack: AsyncExitStack,
) -> dict[str, BackgroundTask]:
    broker = Broker(
        url,
        name="appointments-events",
        timeout=settings.amqp_timeout,
        declare=declare_exchange,
    )
    stack.push_async_callback(broker.close)
    tasks: dict[str, BackgroundTask] = {
        "publish events": EventPublisher(
            EventStore(database),
            broker,
            metrics,
            listener.wakeup(Work.CHANGES),
            interval=settings.event_poll_interval,
            lease=settings.event_lease,
        ).run
    }
    if settings.operation_queue == "rabbitmq":
        tasks[RABBITMQ_LOOP] = RabbitMQQueueWorker(
            url,
            database,
            metrics,
            changed=changes.notify,
            max_batch=settings.max_batch_writes,
            timeout=settings.amqp_timeout,
        ).run
    return tasks


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
