"""The Prometheus endpoint of a program, and the metrics that every program has."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from runtime.listening import listen_on


def new_registry() -> CollectorRegistry:
    """Return a registry with the metrics of the process, the platform and the garbage collector."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@asynccontextmanager
async def serving_metrics(
    registry: CollectorRegistry, host: str, port: int | None, *, settings: str
) -> AsyncIterator[int | None]:
    """Serve metrics in threads while the block runs. Yields the port, None without one.

    `settings` names the settings of host and port. Raises CannotListen.
    """
    if port is None:
        yield None
        return

    def listen(address: str, port: int) -> tuple[Callable[[], None], int]:
        server, thread = start_http_server(port, address, registry)

        def stop() -> None:
            # Wakes the thread, which otherwise checks every half second whether to stop. On
            # systems that refuse this for a listening socket, stopping takes that long.
            with suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
            server.shutdown()
            server.server_close()
            thread.join()

        return stop, server.server_port

    stops, bound = listen_on(host, port, listen, settings=settings)
    try:
        yield bound
    finally:
        for stop in stops:
            await asyncio.to_thread(stop)
