"""`python -m service`: run the gRPC service until SIGTERM or SIGINT."""

import asyncio
import signal
import sys

import psycopg
import structlog
import uvloop
from pydantic import ValidationError

from service.logs import configure_logs
from service.schema import SchemaOutdated
from service.server import serving
from service.settings import Settings


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(
            "; ".join(
                f"{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()
            )
        )
    configure_logs(settings.log_level, settings.log_format)
    try:
        uvloop.run(_serve(settings))
    except SchemaOutdated as error:
        return _fail(str(error))
    except psycopg.Error as error:
        return _fail(f"the database in DATABASE_URL cannot be used: {' '.join(str(error).split())}")
    except (OSError, RuntimeError) as error:
        return _fail(f"cannot listen: {error}")
    return 0


async def _serve(settings: Settings) -> None:
    log = structlog.get_logger()
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


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)  # noqa: T201  # the log may not be set up
    return 1


if __name__ == "__main__":
    sys.exit(main())
