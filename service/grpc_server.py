"""The gRPC server: its options, its ports with their certificates, and its end."""

import asyncio
from contextlib import AsyncExitStack

import grpc

from runtime.backoff import run_forever
from runtime.tls import CertificateWatch
from service.metrics import Metrics
from service.rpc.handler import CallHandler
from service.rpc.listening import bind
from service.rpc.request_reader import SERVER_OPTIONS
from service.settings import Settings

# Seconds for which streams continue on a connection that accepts no new calls.
OLD_CONNECTION_GRACE = 3600
# Seconds between checks for running calls during shutdown; the last responses are sent meanwhile.
STOP_CHECK_INTERVAL = 0.5


def new_server(settings: Settings) -> grpc.aio.Server:
    """Return a server that has no ports yet."""
    return grpc.aio.server(
        options=[
            *SERVER_OPTIONS,
            # Compress responses, at the level that means gzip, for callers that accept it.
            # Gateways do not, so relay streams are not compressed. gRPC compresses within the
            # event loop; the limited size of pages and batches bounds that pause.
            ("grpc.default_compression_level", 1),
            # If the port is in use, fail to start instead of sharing it.
            ("grpc.so_reuseport", 0),
            # After this age the caller opens a new connection, perhaps to another process or
            # address. Running calls are finished on the old one.
            ("grpc.max_connection_age_ms", int(settings.grpc_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", int(OLD_CONNECTION_GRACE * 1000)),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            # Clients wait with further calls until others have ended, so a client that opens calls
            # as fast as it can neither fills the memory nor keeps all others waiting.
            ("grpc.max_concurrent_streams", settings.max_connection_calls),
            # Of a request that nobody reads yet, gRPC keeps 64 KiB; otherwise up to 4 MiB.
            ("grpc.http2.bdp_probe", 0),
            # gRPC reads so many bytes of a connection before it turns to another. Otherwise the
            # buffer of a connection that sends as fast as it can doubles without a limit.
            ("grpc.experimental.tcp_max_read_buffer_size", 64 * 1024),
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


def watched_certificates(
    settings: Settings, metrics: Metrics, stack: AsyncExitStack
) -> CertificateWatch | None:
    """Return the certificates of the gRPC ports, read again when they change, None without TLS."""
    files = settings.tls_files
    if files is None:
        return None
    watch = CertificateWatch(files, metrics.certificate_expiry)
    following = asyncio.create_task(
        run_forever("watch certificates", watch.follow, metrics.unexpected_errors)
    )
    stack.callback(following.cancel)
    return watch


def bind_ports(
    server: grpc.aio.Server, settings: Settings, certificates: CertificateWatch | None
) -> tuple[int, int | None]:
    """Listen on GRPC_PORT and GRPC_MTLS_PORT. Returns both ports.

    gRPC's library for Python cannot ask for a client's certificate without requiring one. So
    callers without a certificate need a port of their own.
    """
    separate = settings.grpc_mtls_port is not None
    port = bind(
        server,
        settings.grpc_host,
        settings.grpc_port,
        settings="GRPC_HOST, GRPC_PORT",
        certificates=certificates,
        client_certificates=settings.grpc_tls_client_ca is not None and not separate,
    )
    if settings.grpc_mtls_port is None:
        return port, None
    mtls_port = bind(
        server,
        settings.grpc_host,
        settings.grpc_mtls_port,
        settings="GRPC_HOST, GRPC_MTLS_PORT",
        certificates=certificates,
        client_certificates=True,
    )
    return port, mtls_port


async def stop(server: grpc.aio.Server, calls: CallHandler, grace: float) -> None:
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
