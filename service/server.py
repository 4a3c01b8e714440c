"""The wiring: settings in, a running server out, and its orderly end."""

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from appointments.v1 import appointment_service_pb2, appointment_service_pb2_grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from prometheus_client import start_http_server

from service.committer import Committer
from service.database import Database, Timeouts
from service.errors import ServiceError
from service.interceptor import CallInterceptor
from service.metrics import Metrics
from service.reads import ReadStore
from service.schema import check_schema
from service.servicer import AppointmentServicer
from service.settings import Settings
from service.writes import WriteStore

SERVICE = appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"].full_name
READINESS_INTERVAL = 1.0

log = structlog.get_logger()


class Server:
    """The gRPC server with everything behind it; an async context manager.

    On leaving, it turns unready, finishes the calls that it has accepted (up to the
    grace), then the writes whose callers have gone, then closes its connections.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        timeouts = Timeouts(
            connection=settings.connection_timeout,
            lock=settings.lock_timeout,
            statement=settings.statement_timeout,
        )
        self._write_database = Database(
            settings.database_url,
            name="write",
            connections=settings.write_connections,
            # The committer has one batch in flight for each connection at most.
            max_waiting=settings.write_connections,
            timeouts=timeouts,
            writable=True,
            metrics=self._metrics,
        )
        self._read_database = self._reader("read", settings.database_url, timeouts)
        self._replica = (
            self._reader("replica", settings.database_read_url, timeouts)
            if settings.database_read_url
            else None
        )
        self._committer = Committer(
            WriteStore(self._write_database, self._metrics),
            self._metrics,
            connections=settings.write_connections,
            max_batch=settings.max_batch_writes,
            max_queued=settings.max_queued_writes,
        )
        self._health = health.aio.HealthServicer()
        self._background: list[asyncio.Task[None]] = []
        self.port = 0
        self.metrics_port: int | None = None

    def _reader(self, name: str, url: str, timeouts: Timeouts) -> Database:
        return Database(
            url,
            name=name,
            connections=self._settings.read_connections,
            max_waiting=self._settings.max_queued_reads,
            timeouts=timeouts,
            writable=False,
            metrics=self._metrics,
        )

    async def __aenter__(self) -> Self:
        """Start. Raises SchemaOutdated, psycopg.OperationalError, OSError or RuntimeError."""
        await check_schema(self._settings.database_url)
        for database in self._databases():
            await database.open()
        self._server = self._build_server()
        self._channelz = await self._start_channelz()
        if self._settings.metrics_port is not None:
            metrics_server, _ = start_http_server(
                self._settings.metrics_port, registry=self._metrics.registry
            )
            self.metrics_port = metrics_server.server_port
        await self._server.start()
        self._background.append(asyncio.create_task(self._watch_readiness()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._background:
            task.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.shutdown_grace)
        await self._committer.drain()
        if self._channelz is not None:
            await self._channelz.stop(None)
        for database in self._databases():
            await database.close()

    def _databases(self) -> list[Database]:
        databases = [self._write_database, self._read_database]
        return databases if self._replica is None else [*databases, self._replica]

    def _build_server(self) -> grpc.aio.Server:
        settings = self._settings
        interceptor = CallInterceptor(SERVICE, self._metrics, timeout=settings.request_timeout)
        server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                # One process a port: a second one must fail to start, not share silently.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
            ],
        )
        servicer = AppointmentServicer(
            self._committer, ReadStore(self._read_database, self._replica)
        )
        appointment_service_pb2_grpc.add_AppointmentServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _add_reflection(server, SERVICE, health.SERVICE_NAME)
        self.port = server.add_insecure_port(f"{settings.grpc_host}:{settings.grpc_port}")
        return server

    async def _start_channelz(self) -> grpc.aio.Server | None:
        """Serve channelz, which shows this process's sockets, on loopback only."""
        if self._settings.channelz_port is None:
            return None
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        channelz.add_channelz_servicer(server)
        _add_reflection(server, "grpc.channelz.v1.Channelz")
        port = server.add_insecure_port(f"127.0.0.1:{self._settings.channelz_port}")
        await server.start()
        log.info("channelz listening", address="127.0.0.1", port=port)
        return server

    async def _watch_readiness(self) -> None:
        """Keep the health of the service true to whether the database answers.

        The health of "" (the process) is SERVING as long as it runs: restarting it
        does not bring a database back.
        """
        serving = health_pb2.HealthCheckResponse.SERVING
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", serving)
        ready: bool | None = None
        while True:
            was_ready = ready
            try:
                async with self._read_database.connection() as connection:
                    await connection.execute("SELECT 1")
                ready = True
            except (ServiceError, OSError) as error:
                ready = False
                if was_ready is not False:
                    log.warning("not ready", error=str(error))
            if ready is not was_ready:
                await self._health.set(SERVICE, serving if ready else not_serving)
                if ready and was_ready is False:
                    log.info("ready again")
            await asyncio.sleep(READINESS_INTERVAL)


def _add_reflection(server: grpc.aio.Server, *services: str) -> None:
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
