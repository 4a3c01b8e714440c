"""Runs the gateway: `python -m gateway`. What can be set is in `gateway.settings`."""

import sys

import uvloop
from pydantic import ValidationError

from gateway.app import run
from gateway.settings import Settings
from runtime.listening import CannotListen
from runtime.logs import configure_logs, lifecycle_logger
from runtime.settings import faults
from runtime.supervised import Supervised
from runtime.supervisor import CannotStart, supervise


def main() -> None:
    """Run until a signal; what keeps it from starting is one line and exit code 1."""
    try:
        supervised = Supervised.current()
        settings = Settings(**supervised.settings) if supervised else Settings()
        configure_logs(settings.log_level, settings.log_format)
        if supervised or settings.processes == 1:
            uvloop.run(run(settings, supervised))
        else:
            supervise(
                "gateway",
                processes=settings.processes,
                host=settings.gateway_host,
                port=settings.gateway_port,
                metrics_port=settings.gateway_metrics_port,
                names=("GATEWAY_HOST", "GATEWAY_PORT", "GATEWAY_METRICS_PORT"),
                settings=lambda port: {"gateway_port": port, "gateway_metrics_port": None},
                log=lifecycle_logger(),
            )
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except CannotListen as error:
        sys.exit(f"error: {error}")
    except CannotStart as error:
        sys.exit(f"error: {error}" if str(error) else 1)


if __name__ == "__main__":
    main()
