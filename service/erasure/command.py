"""`python -m service purge ORGANIZATION`: the arguments, the question and the output."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from service.erasure.organization import Stored, purge_organization
from service.postgres.session import Timeouts


class NotMeant(Exception):
    """The operator did not confirm the organization. Nothing was removed."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments. Exits with code 2 if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m service purge",
        description="Remove all of one organization from the database of DATABASE_URL:"
        " appointments, history, operations, webhooks. DATABASE_URL must be that of the user who"
        " owns the tables. Nothing brings it back but a backup.",
    )
    parser.add_argument("organization", metavar="ORGANIZATION")
    parser.add_argument(
        "--yes-delete",
        metavar="ORGANIZATION",
        help="do not ask for the organization's name again, as it is here",
    )
    return parser.parse_args(arguments)


def purge(url: str, timeouts: Timeouts, arguments: argparse.Namespace) -> None:
    """Remove the organization and print what was removed.

    Raises NotMeant, and what `purge_organization` raises.
    """
    organization_id: str = arguments.organization
    removed = asyncio.run(
        purge_organization(
            url, timeouts, organization_id, is_meant=lambda stored: _is_meant(arguments, stored)
        )
    )
    if removed is None:
        raise NotMeant("that is another name; nothing was removed")
    for table, rows in removed.items():
        _print(f"{rows:>12,} rows of {table} removed")
    _print(
        f"The organization {organization_id} is removed. Its space is free after a VACUUM; backups"
        " and replicas have their own time (docs/privacy.md)."
    )


def _is_meant(arguments: argparse.Namespace, stored: Stored) -> bool:
    """Ask for the organization's name again. Raises NotMeant if nobody can be asked."""
    organization_id: str = arguments.organization
    _print(
        f"The organization {organization_id} has {stored.appointments:,} appointments,"
        f" {stored.revision:,} changes and {stored.webhooks:,} webhooks in the database"
        f" {stored.database}."
    )
    if arguments.yes_delete is not None:
        return bool(arguments.yes_delete == organization_id)
    if not sys.stdin.isatty():
        raise NotMeant(
            "standard input is no terminal, so nobody can be asked; nothing was removed. Scripts"
            f" say --yes-delete {organization_id}"
        )
    # The event loop would only note an interrupt, and the question would go on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.stdout.write("Type its name again to remove all of it for ever: ")
        sys.stdout.flush()
        return sys.stdin.readline().rstrip("\n") == organization_id
    except KeyboardInterrupt:
        raise NotMeant("interrupted; nothing was removed") from None
    finally:
        signal.signal(signal.SIGINT, before)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
