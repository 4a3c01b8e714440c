"""`python -m service`: run the gRPC service until SIGTERM or SIGINT."""

import asyncio
import signal
import sys

import psycopg
import uvloop
from pydantic import ValidationError

from service.logs import configure_logs, lifecycle_logger
from service.schema import SchemaOutdated
from service.server import CannotListen, serving
from service.settings import Settings, describe


def main() -> None:
    """Run; what keeps it from starting is one line on standard error and exit code 1."""
    try:
        settings = Settings()
        configure_logs(settings.log_level, settings.log_format)
        uvloop.run(_serve(settings))
    except ValidationError as error:
        sys.exit(f"error: {describe(error)}")
    except (SchemaOutdated, CannotListen) as error:
        sys.exit(f"error: {error}")
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the database of DATABASE_URL cannot be used: {reason}")


async def _serve(settings: Settings) -> None:
    log = lifecycle_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as ports:
        log.info(
            "listening",
            address=settings.grpc_host,
            port=ports.grpc,
            metrics_port=ports.metrics,
            channelz_port=ports.channelz,
        )
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


if __name__ == "__main__":
    main()
