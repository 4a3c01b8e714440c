"""`python -m service`: run the gRPC service until SIGTERM or SIGINT.

`python -m service worker`: run a worker, which does the work in the background.
`python -m service verify`: check the database; see service/verify/command.py.
`python -m service keys`: create, list, rotate and revoke API keys.
`python -m service rotate-secrets`: encrypt stored secrets by the first key of SECRETS_KEYS.
`python -m service purge ORGANIZATION`: remove an organization; see service/erasure/command.py.
`python -m service new-epoch`: tell consumers that the database was restored to an earlier time.
"""

import sys
from collections.abc import Sequence

import psycopg
import uvloop
from pydantic import ValidationError

from runtime.files import FilesUnfit
from runtime.listening import CannotListen
from runtime.logs import configure_logs
from runtime.program import run_until_stopped
from runtime.settings import faults
from service.access.signing_keys import SigningKeysUnavailable
from service.erasure.command import NotMeant, purge
from service.erasure.command import parse as parse_purge
from service.erasure.organization import Locked
from service.errors import ServiceError
from service.keys import main as keys
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.new_epoch import OthersConnected, begin_epoch
from service.postgres.schema import SchemaOutdated, check_primary
from service.postgres.session import WORKER_ROLE, DatabaseUnfit
from service.server import serving
from service.settings import Settings
from service.verify.command import NOT_CHECKED, NotChecked, verify
from service.verify.command import parse as parse_verify
from service.webhooks.encryption import SecretKeys
from service.webhooks.reencryption import COMMAND, KeysMissing, rotate_secrets
from service.worker import working

USAGE = (
    "usage: python -m service [worker | verify [--help] | keys [--help] | rotate-secrets"
    " | purge ORGANIZATION | new-epoch]"
)


NEW_EPOCH = "new-epoch"


def main() -> None:
    """Run the program. If it cannot start, print one line to stderr and exit with code 1."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["verify"]:
        sys.exit(_verify(arguments[1:]))
    if arguments[:1] == ["purge"]:
        _purge(arguments[1:])
        return
    if arguments not in ([], ["worker"], [COMMAND], [NEW_EPOCH]) and arguments[:1] != ["keys"]:
        sys.exit(USAGE)
    try:
        if arguments[:1] == ["keys"]:
            keys.main(arguments[1:], prog_name="python -m service keys")
        settings = Settings()
        if arguments == [COMMAND]:
            uvloop.run(_rotate_secrets(settings))
            return
        if arguments == [NEW_EPOCH]:
            epoch = uvloop.run(begin_epoch(settings.database_url, settings.timeouts))
            sys.stdout.write(f"the epoch {epoch} has begun; start the services and workers now\n")
            return
        name = "worker" if arguments else "service"
        configure_logs(name, level=settings.log_level, format=settings.log_format)
        uvloop.run(_work(settings) if arguments else _serve(settings))
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except SigningKeysUnavailable as error:
        sys.exit(f"error: JWT_KEYS_FILE: {error}")
    except (
        SchemaOutdated,
        DatabaseUnfit,
        KeysMissing,
        FilesUnfit,
        CannotListen,
        OthersConnected,
    ) as error:
        sys.exit(f"error: {error}")
    except ServiceError as error:
        sys.exit(f"error: {error.message}")
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the database of DATABASE_URL cannot be used: {reason}")
    except KeyboardInterrupt:  # of a command, since the programs end when they are told to
        sys.exit("error: interrupted")


def _verify(arguments: Sequence[str]) -> int:
    """Check the database and return the exit code, 2 if it cannot be checked."""
    options = parse_verify(arguments)
    try:
        return verify(Settings().database_url, options)
    except ValidationError as error:
        reason = "; ".join(faults(error))
    except NotChecked as error:
        reason = str(error)
    except KeyboardInterrupt:
        reason = "interrupted"
    sys.stderr.write(f"error: {reason}\n")
    return NOT_CHECKED


async def _rotate_secrets(settings: Settings) -> None:
    primary = await check_primary(settings.database_url, settings.timeouts, role=WORKER_ROLE)
    database = Database(
        settings.database_url,
        name="rotate secrets",
        connections=1,
        max_waiting=1,
        timeouts=settings.timeouts,
        role=WORKER_ROLE,
        replica=False,
        metrics=Metrics(),
        distributed=primary.distributed,
    )
    async with database:
        done = await rotate_secrets(database, SecretKeys(settings.secrets_keys))
    sys.stdout.write(f"encrypted the secrets of {done} webhooks; no other key is needed now\n")


def _purge(arguments: Sequence[str]) -> None:
    """Remove an organization. If that fails, print one line to stderr and exit with code 1."""
    options = parse_purge(arguments)
    try:
        settings = Settings()
        purge(settings.database_url, settings.timeouts, options)
    except ValidationError as error:
        sys.exit(f"error: {'; '.join(faults(error))}")
    except (NotMeant, Locked, SchemaOutdated, DatabaseUnfit) as error:
        sys.exit(f"error: {error}")
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: the purge did not end, run it again: {reason}")
    except KeyboardInterrupt:
        sys.exit("error: the purge was interrupted, run it again")


async def _serve(settings: Settings) -> None:
    await run_until_stopped(
        serving(settings),
        lambda ports: {
            "address": settings.grpc_host,
            "port": ports.grpc,
            "mtls_port": ports.mtls,
            "health_port": ports.health,
            "metrics_port": ports.metrics,
            "channelz_port": ports.channelz,
        },
    )


async def _work(settings: Settings) -> None:
    await run_until_stopped(working(settings), lambda metrics_port: {"metrics_port": metrics_port})


if __name__ == "__main__":
    main()
