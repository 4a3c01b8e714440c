"""`python -m service`: run the gRPC service until SIGTERM or SIGINT.

`python -m service worker`: run a worker, which does what callers do not wait for.
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import uvloop
from pydantic import ValidationError

from runtime.listening import CannotListen
from runtime.logs import configure_logs, lifecycle_logger, log_event_loop
from runtime.settings import faults
from runtime.supervised import Supervised
from runtime.supervisor import CannotStart, supervise
from service.postgres.schema import SchemaOutdated
from service.postgres.session import DatabaseUnfit
from service.server import serving
from service.settings import Settings
from service.worker import working

USAGE = "usage: python -m service [worker]"


def main() -> None:
    """Run; what keeps it from starting is one line on standard error and exit code 1."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["worker"]):
        sys.exit(USAGE)
    try:
        supervised = Supervised.current()
        settings = Settings(**supervised.settings) if supervised else Settings()
        configure_logs(settings.log_level, settings.log_format)
        if arguments == ["worker"]:
            uvloop.run(_work(settings))
        elif supervised or settings.processes == 1:
            uvloop.run(_serve(settings, supervised))
        else:
            supervise(
                "service",
                processes=settings.processes,
                host=settings.grpc_host,
                port=settings.grpc_port,
                metrics_port=settings.metrics_port,
                names=("GRPC_HOST", "GRPC_PORT", "METRICS_PORT"),
                settings=lambda port: {"grpc_port": port, "metrics_port": None},
                log=lifecycle_logger(),
            )
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except (SchemaOutdated, DatabaseUnfit, CannotListen) as error:
        sys.exit(f"error: {error}")
    except CannotStart as error:
        sys.exit(f"error: {error}" if str(error) else 1)
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the database of DATABASE_URL cannot be used: {reason}")


async def _serve(settings: Settings, supervised: Supervised | None) -> None:
    tell: Callable[..., Any] = supervised.tell if supervised else lifecycle_logger().info
    stop = _told_to_stop()
    log_event_loop()
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


async def _work(settings: Settings) -> None:
    log = lifecycle_logger()
    stop = _told_to_stop()
    log_event_loop()
    async with working(settings) as metrics_port:
        log.info("listening", metrics_port=metrics_port)
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def _told_to_stop() -> asyncio.Event:
    """Return what is set by SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


if __name__ == "__main__":
    main()
