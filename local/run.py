"""`make run`: runs everything on this machine until Ctrl-C.

The data is kept in `.data/postgres` (RUN_DATA_DIR) for the next time. If DATABASE_URL or
DATABASE_URL_FILE is set, that server is used instead. All programs take their settings from the
environment (GRPC_PORT, GATEWAY_PORT, LOG_LEVEL, ...).
"""

import contextlib
import os
import queue
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Never

from pydantic import ValidationError
from rich.console import Console

import gateway.settings
import service.settings
from local.postgres import EmbeddedPostgres
from local.programs import ROOT, Program, StartError
from local.stack import Stack, running
from runtime.secrets import is_secret, secret_of
from runtime.settings import faults

# There is no authentication, so the programs listen on loopback by default.
ON_LOOPBACK = {"GRPC_HOST": "127.0.0.1", "GATEWAY_HOST": "127.0.0.1"}


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    ended: queue.SimpleQueue[Program] = queue.SimpleQueue()

    errors = setting_errors()
    if errors:
        print(f"make run: {'; '.join(errors)}", file=sys.stderr)
        return 1
    for name, similar in misspelled(os.environ):
        console.print(f"{name} is not a setting: did you mean {similar}?", style="yellow")
    postgres = secrets_key = None
    settings = {**ON_LOOPBACK, "LOG_FORMAT": "text", **os.environ}
    if url := secret_of("DATABASE_URL", settings):
        settings["DATABASE_URL"] = url
        settings.pop("DATABASE_URL_FILE", None)
    else:
        data = Path(os.environ.get("RUN_DATA_DIR") or ROOT / ".data/postgres")
        postgres = EmbeddedPostgres(data)
        if secret_of("SECRETS_KEYS", settings) is None:
            # Beside the directory, which belongs to the user that PostgreSQL runs as.
            secrets_key = data.with_name(f"{data.name}.secrets-key")
    try:
        with (
            stopping_on_signals(),
            running(
                postgres=postgres,
                secrets_key=secrets_key,
                settings=settings,
                on_step=lambda step: console.print(f"{step} ...", style="dim"),
                stdout=None,  # the programs write to the terminal themselves
                on_errors=show_errors,
                on_exit=ended.put,
            ) as stack,
        ):
            console.print(welcome(stack), markup=False)
            _fail_when_one_ends(ended)
    except KeyboardInterrupt:
        try:
            console.print("stopped", style="dim")
        except OSError:
            # The terminal is closed. Flushing its buffer at exit must not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StartError as error:
        sys.stdout.flush()
        print(f"make run: {error}", file=sys.stderr)
        return 1


def _fail_when_one_ends(ended: queue.SimpleQueue[Program]) -> Never:
    program = ended.get()
    raise StartError(f"{program.name} ended unexpectedly: {program.exit_summary()}")


def setting_errors() -> list[str]:
    """Return the errors of both programs' settings in the environment, without duplicates.

    Also whether the gateway could not call the service, which each of them cannot know.
    """
    errors: dict[str, None] = {}
    # The URL of the embedded server's database is not known yet.
    given = os.environ.get("DATABASE_URL") or os.environ.get("DATABASE_URL_FILE")
    of_service: service.settings.Settings | None = None
    of_gateway: gateway.settings.Settings | None = None
    try:
        of_service = (
            service.settings.Settings()
            if given
            else service.settings.Settings(database_url="postgresql://")
        )
    except ValidationError as error:
        errors |= dict.fromkeys(faults(error))
    try:
        of_gateway = gateway.settings.Settings()
    except ValidationError as error:
        errors |= dict.fromkeys(faults(error))
    if of_service is not None and of_gateway is not None:
        errors |= dict.fromkeys(_tls_errors(of_service, of_gateway))
    return list(errors)


def _tls_errors(
    of_service: service.settings.Settings, of_gateway: gateway.settings.Settings
) -> Iterator[str]:
    if of_service.tls_files is None:
        if of_gateway.service_tls_ca is not None:
            yield "SERVICE_TLS_CA needs GRPC_TLS_CERTIFICATE and GRPC_TLS_KEY"
        return
    if of_gateway.service_tls_ca is None:
        yield "GRPC_TLS_CERTIFICATE needs SERVICE_TLS_CA, so that the gateway trusts the service"
    elif (
        of_service.grpc_tls_client_ca is not None
        and of_service.grpc_mtls_port is None
        and of_gateway.service_tls_certificate is None
    ):
        yield (
            "GRPC_TLS_CLIENT_CA needs SERVICE_TLS_CERTIFICATE and SERVICE_TLS_KEY, so that the"
            " service trusts the gateway"
        )


def misspelled(environment: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield variables whose names are similar to that of a setting, with that setting."""
    models = (service.settings.Settings, gateway.settings.Settings)
    names = {name.upper() for model in models for name in model.model_fields}
    names |= {
        f"{name.upper()}_FILE"
        for model in models
        for name, field in model.model_fields.items()
        if is_secret(field)
    }
    for name in environment:
        if name not in names and (similar := get_close_matches(name, names, n=1, cutoff=0.9)):
            yield name, similar[0]


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first SIGINT, SIGTERM or SIGHUP. Later ones are ignored."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_: object) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, stop)
    yield


def show_errors(name: str, lines: list[str]) -> None:
    """Print lines that a program wrote to standard error. Errors of printing are ignored."""
    with contextlib.suppress(OSError):
        print("\n".join(f"{name} {line}" for line in lines), flush=True)


def welcome(stack: Stack) -> str:
    """Return the addresses of everything that is served, and two commands to try."""
    scheme, trust = "http", ""
    if certificate := os.environ.get("GATEWAY_TLS_CERTIFICATE"):
        scheme, trust = "https", f" --cacert {shlex.quote(certificate)}"
    rest, grpc = f"{scheme}://localhost:{stack.gateway.port}", f"localhost:{stack.service.port}"
    trusted = [os.environ.get(f"SERVICE_TLS_{name}") for name in ("CA", "CERTIFICATE", "KEY")]
    example = shlex.join([grpc, *(file for file in trusted if file)])
    calendar = "" if os.environ.get("GATEWAY_PAGE") == "off" else f"\n  calendar   {rest}"
    url = f"'{stack.database_url}'"
    if os.environ.get("DATABASE_URL"):
        url = '"$DATABASE_URL"'
    elif os.environ.get("DATABASE_URL_FILE"):
        url = '"$(cat "$DATABASE_URL_FILE")"'
    body = '{"id":"1","start":"2030-01-01 10:00","end":"2030-01-01 10:30","title":"First"}'

    def metrics(program: Program) -> str:
        port = program.metrics_port
        where = f"http://localhost:{port}/metrics" if port else "none"
        return f"{where} ({program.name})"

    return f"""{calendar}
  REST       {rest}/api/appointments
  API docs   {rest}/api/docs
  gRPC       {grpc}, with reflection
  metrics    {metrics(stack.service)}
             {metrics(stack.worker)}
             {metrics(stack.gateway)}
  database   psql {url}

  Try:
  curl -i{trust} {rest}/api/appointments -H 'Content-Type: application/json' -d '{body}'
  .venv/bin/python examples/booking.py {example}

  Ctrl-C stops everything; the data stays.
"""


if __name__ == "__main__":
    sys.exit(main())
