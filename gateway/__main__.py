"""Runs the gateway: `python -m gateway`. What can be set is in `gateway.settings`."""

import sys

import uvloop
from pydantic import ValidationError

from gateway.app import CannotListenError, run
from gateway.logs import configure_logs
from gateway.settings import Settings, describe


def main() -> int:
    """Run until a signal; the exit code is 1 if the gateway could not start."""
    try:
        settings = Settings()
    except ValidationError as error:
        return _fail(describe(error))
    configure_logs(settings.log_level, settings.log_format)
    try:
        uvloop.run(run(settings))
    except CannotListenError as error:
        return _fail(str(error))
    return 0


def _fail(reason: str) -> int:
    sys.stderr.write(f"gateway: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
