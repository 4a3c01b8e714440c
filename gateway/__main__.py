"""Runs the gateway: `python -m gateway`. What can be set is in `gateway.settings`."""

import sys

import uvloop
from pydantic import ValidationError

from gateway.app import CannotListenError, run
from gateway.logs import configure_logs
from gateway.settings import Settings, describe


def main() -> None:
    """Run until a signal; what keeps it from starting is one line and exit code 1."""
    try:
        settings = Settings()
        configure_logs(settings.log_level, settings.log_format)
        uvloop.run(run(settings))
    except ValidationError as error:
        sys.exit(f"error: {describe(error)}")
    except CannotListenError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
