"""`python -m service`: run the gRPC service until SIGTERM or SIGINT.

`python -m service worker`: run a worker, which does the work in the background.
"""

import sys

import psycopg
import uvloop
from pydantic import ValidationError

from runtime.listening import CannotListen
from runtime.logs import configure_logs
from runtime.program import run_until_stopped
from runtime.settings import faults
from service.postgres.schema import SchemaOutdated
from service.postgres.session import DatabaseUnfit
from service.server import serving
from service.settings import Settings
from service.worker import working

USAGE = "usage: python -m service [worker]"


def main() -> None:
    """Run the program. If it cannot start, print one line to stderr and exit with code 1."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["worker"]):
        sys.exit(USAGE)
    try:
        settings = Settings()
        name = "worker" if arguments else "service"
        configure_logs(name, level=settings.log_level, format=settings.log_format)
        uvloop.run(_work(settings) if arguments else _serve(settings))
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except (SchemaOutdated, DatabaseUnfit, CannotListen) as error:
        sys.exit(f"error: {error}")
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the database of DATABASE_URL cannot be used: {reason}")


async def _serve(settings: Settings) -> None:
    await run_until_stopped(
        serving(settings),
        lambda ports: {
            "address": settings.grpc_host,
            "port": ports.grpc,
            "metrics_port": ports.metrics,
            "channelz_port": ports.channelz,
        },
    )


async def _work(settings: Settings) -> None:
    await run_until_stopped(working(settings), lambda metrics_port: {"metrics_port": metrics_port})


if __name__ == "__main__":
    main()
