"""`python -m service`: run the gRPC service until SIGTERM or SIGINT."""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import uvloop
from pydantic import ValidationError

from processes.supervised import Supervised
from processes.supervisor import CannotStart, supervise
from service.logs import configure_logs, lifecycle_logger
from service.schema import SchemaOutdated
from service.server import CannotListen, serving
from service.settings import Settings, describe


def main() -> None:
    """Run; what keeps it from starting is one line on standard error and exit code 1."""
    try:
        supervised = Supervised.current()
        settings = Settings(**supervised.settings) if supervised else Settings()
        configure_logs(settings.log_level, settings.log_format)
        if supervised or settings.processes == 1:
            uvloop.run(_serve(settings, supervised))
        else:
            supervise(
                "service",
                processes=settings.processes,
                host=settings.grpc_host,
                port=settings.grpc_port,
                metrics_port=settings.metrics_port,
                settings=lambda port: {"grpc_port": port, "metrics_port": None},
                log=lifecycle_logger(),
            )
    except ValidationError as error:
        sys.exit(f"error: {describe(error)}")
    except (SchemaOutdated, CannotListen) as error:
        sys.exit(f"error: {error}")
    except CannotStart as error:
        sys.exit(f"error: {error}" if str(error) else 1)
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the database of DATABASE_URL cannot be used: {reason}")


async def _serve(settings: Settings, supervised: Supervised | None) -> None:
    tell: Callable[..., Any] = supervised.tell if supervised else lifecycle_logger().info
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as ports:
        tell(
            "listening",
            address=settings.grpc_host,
            port=ports.grpc,
            metrics_port=ports.metrics,
            channelz_port=ports.channelz,
        )
        await stop.wait()
        tell("stopping")
    tell("stopped")


if __name__ == "__main__":
    main()
