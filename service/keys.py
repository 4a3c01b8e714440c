"""`python -m service keys`: create, list, rotate and revoke API keys.

Only a new key is written to standard output, so that `KEY=$(python -m service keys create ...)`
is the key.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import IO, Any

import click
import psycopg

from service import rules
from service.access.api_key import PREFIX, ApiKey, read_key
from service.access.key_table import KeyNotFound, KeyTable, StoredKey
from service.access.principal import SCOPES
from service.access.tokens import MAX_SUBJECT
from service.settings import Settings

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# Independent of what is preset for the user. A wait for another command ends with an error. For the
# transaction only, so that a pooler in between keeps nothing.
_SETTINGS = (
    "SET LOCAL search_path = public; SET LOCAL TimeZone = 'UTC';"
    " SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '5s'"
)
_ONCE = "Store it now; it is shown only once."
# Characters that are read of standard input. A key has fewer.
_MAX_LINE = 1024


class _Failure(click.ClickException):
    """Ends the command with one line on standard error and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=True)


class _Duration(click.ParamType[timedelta]):
    """A time such as 90d, 24h, 30m or 0s."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if match is None:
            self.fail("must be a number and s, m, h or d, such as 90d", param, ctx)
        return timedelta(**{_UNITS[match[2]]: int(match[1])})


class _Text(click.ParamType[str]):
    """A text of 1 to `most` characters."""

    name = "text"

    def __init__(self, most: int) -> None:
        self._most = most

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        text = str(value)
        if not 0 < len(text) <= self._most or rules.CONTROL.search(text):
            self.fail(f"must have 1 to {self._most} characters, no control characters", param, ctx)
        return text


def _id_of(_: click.Context, __: click.Parameter, text: str) -> str:
    """Return the id of a key, which may be given as the key itself, also on standard input."""
    if text == "-":
        text = sys.stdin.readline(_MAX_LINE).strip()
        if not text:
            raise click.BadParameter("is - but standard input begins without a key or id")
    key = read_key(text)
    if key is None and text.startswith(PREFIX):
        raise click.BadParameter("is not a complete key; give its id")  # it may be a secret
    return text if key is None else key.id


@click.group(name="python -m service keys")
def main() -> None:
    """Create, list, rotate and revoke API keys.

    DATABASE_URL must name a user that may write the table, such as the one that runs the
    migrations. The user of the service may not.
    """


@main.command()
@click.option(
    "--subject",
    required=True,
    type=_Text(MAX_SUBJECT),
    help="Who uses the key: the actor of its writes.",
)
@click.option(
    "--organization",
    "organizations",
    multiple=True,
    type=_Text(rules.MAX_ORGANIZATION),
    help="An organization that it is for. Repeat it for several.",
)
@click.option(
    "--all-organizations", is_flag=True, help="The key is for all organizations, also later ones."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it allows. Repeat it for several; none includes another.",
)
@click.option(
    "--expires-in",
    type=_Duration(),
    help="Until when it is valid, such as 90d. Without it: until it is revoked.",
)
def create(
    subject: str,
    organizations: Sequence[str],
    all_organizations: bool,  # a flag of the command line
    scopes: Sequence[str],
    expires_in: timedelta | None,
) -> None:
    """Create a key and write it to standard output."""
    if all_organizations == bool(organizations):
        raise click.UsageError(
            "Give --organization, once or several times, or --all-organizations."
        )
    with _table() as table:
        key = table.create(
            subject=subject,
            organizations=None if all_organizations else list(dict.fromkeys(organizations)),
            scopes=list(dict.fromkeys(scopes)),
            expires_in=expires_in,
        )
    _show(key, f"The new key {key.id}, for {subject}. {_ONCE}")


@main.command("list")
def list_keys() -> None:
    """List all keys, without their secrets."""
    with _table() as table:
        rows = [_HEAD, *map(_columns, table.list())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())


@main.command()
@click.argument("key_id", metavar="ID", callback=_id_of)
@click.option(
    "--overlap",
    type=_Duration(),
    default="24h",
    show_default=True,
    help="How long the old secret stays valid.",
)
def rotate(key_id: str, overlap: timedelta) -> None:
    """Give a key a new secret and write it to standard output. Only one old secret is kept.

    ID may also be the key itself; with - it is read from standard input.
    """
    with _table() as table:
        key = table.rotate(key_id, overlap=overlap)
    _show(key, f"The new secret of {key_id}; the old one ends in {overlap}. {_ONCE}")


@main.command()
@click.argument("key_id", metavar="ID", callback=_id_of)
def revoke(key_id: str) -> None:
    """Revoke a key for good. Every service refuses it within five seconds.

    ID may also be the key itself, as found where it was published by mistake. While it is still
    valid, use - and standard input: other users of this machine can read arguments.
    """
    with _table() as table:
        table.revoke(key_id)
    click.echo(f"{key_id} is revoked.", err=True)


@contextmanager
def _table() -> Iterator[KeyTable]:
    """Yield the table of keys. If that fails, print one line and exit with code 1."""
    try:
        with psycopg.connect(Settings().database_url, prepare_threshold=None) as connection:
            connection.execute(_SETTINGS)
            yield KeyTable(connection)
    except KeyNotFound as error:
        raise _Failure(str(error)) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise _Failure(
            "the user of DATABASE_URL may not write the table api_keys; use the one that runs the"
            " migrations"
        ) from error
    except psycopg.errors.UndefinedTable as error:
        raise _Failure("the database lacks the table api_keys; run 'make migrate' first") from error
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise _Failure(f"the database of DATABASE_URL cannot be used: {reason}") from error


def _show(key: ApiKey, explanation: str) -> None:
    click.echo(explanation, err=True)
    click.echo(key.text)


_HEAD = ("ID", "SUBJECT", "STATE", "ORGANIZATIONS", "SCOPES", "CREATED", "EXPIRES")


def _columns(key: StoredKey) -> tuple[str, ...]:
    return (
        key.key_id,
        key.subject,
        key.state,
        "all" if key.organizations is None else ",".join(key.organizations),
        ",".join(key.scopes),
        f"{key.created_at:%Y-%m-%d}",
        "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}Z",
    )
