"""`python -m gateway`: run the gateway. Its settings are in `gateway.settings`."""

import sys

import uvloop
from pydantic import ValidationError

from gateway.app import serving
from gateway.settings import Settings
from runtime.files import FilesUnfit
from runtime.listening import CannotListen
from runtime.logs import configure_logs
from runtime.program import run_until_stopped
from runtime.settings import faults


def main() -> None:
    """Run until a signal. An error at startup is printed as one line, with exit code 1."""
    if sys.argv[1:]:
        sys.exit("usage: python -m gateway, with settings in the environment")
    try:
        settings = Settings()
        configure_logs("gateway", level=settings.log_level, format=settings.log_format)
        uvloop.run(_serve(settings))
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except (FilesUnfit, CannotListen) as error:
        sys.exit(f"error: {error}")


async def _serve(settings: Settings) -> None:
    await run_until_stopped(
        serving(settings),
        lambda listening: {
            "address": settings.gateway_host,
            "port": listening.port,
            "metrics_port": listening.metrics_port,
            "service": settings.service_address,
        },
        lambda listening: {"in_flight": listening.in_flight.count},
    )


if __name__ == "__main__":
    main()
