"""`python -m service keys`, with the logins of the owner and of the service."""

import re
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from service.access.api_key import read_key
from service.access.key_table import KeyTable
from service.keys import main
from tests.access.caller import Caller, bearer
from tests.access.conftest import Guarded
from tests.commands import run_command
from tests.observing import until

READER = ("--scope", "appointments.read")


def keys(url: str, *arguments: str, given: str | None = None, succeeds: bool = True) -> Result:
    """Run the command within this process, with `given` on standard input."""
    done = CliRunner(env={"DATABASE_URL": url}).invoke(main, arguments, input=given)
    assert (done.exit_code == 0) is succeeds, done.output
    return done


def test_it_is_a_command_of_the_service(guarded: Guarded, caller: Caller) -> None:
    """With the key alone on standard output, and errors in one line."""
    create = ("create", "--subject", "a", "--all-organizations", "--scope", "appointments.write")
    created = run_command(guarded.database_url, "keys", *create)
    assert created.returncode == 0
    assert caller.write(bearer(created.stdout.removesuffix("\n"))) == ""
    failed = run_command("postgresql://127.0.0.1:1/none", "keys", *create)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: the database of DATABASE_URL cannot be used: ")
    assert failed.stderr.count("\n") == 1
    usage = run_command(guarded.database_url, "keys")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr.startswith("Usage: python -m service keys ")


def test_the_life_of_a_key(guarded: Guarded, caller: Caller, table: KeyTable) -> None:
    url = guarded.database_url
    created = keys(
        url,
        *("create", "--subject", "booking", "--organization", caller.organization),
        *(*READER, "--scope", "appointments.write", "--expires-in", "90d"),
    )
    key = read_key(created.stdout.removesuffix("\n"))
    assert key is not None
    assert created.stderr == (
        f"The new key {key.id}, for booking. Store it now; it is shown only once.\n"
    )
    assert caller.write(bearer(key.text)) == ""

    head, *lines = keys(url, "list").stdout.splitlines()
    assert " ".join(head.split()) == "ID SUBJECT STATE ORGANIZATIONS SCOPES CREATED EXPIRES"
    [line] = [line for line in lines if line.startswith(key.id)]
    expires = datetime.now(UTC) + timedelta(days=90)
    assert re.split("  +", line)[1:6] == [
        "booking",
        "valid",
        caller.organization,
        "appointments.read,appointments.write",
        f"{datetime.now(UTC):%Y-%m-%d}",
    ]
    assert f"{expires:%Y-%m-%d}" in line

    rotated = keys(url, "rotate", key.id, "--overlap", "1h")
    new = read_key(rotated.stdout.removesuffix("\n"))
    assert new is not None
    assert new.id == key.id
    assert rotated.stderr == (
        f"The new secret of {key.id}; the old one ends in 1:00:00. Store it now; it is shown only"
        " once.\n"
    )
    until(lambda: caller.reason(bearer(new.text)) == caller.reason(bearer(key.text)) == "")
    assert f"{key.id}  booking  rotating" in keys(url, "list").stdout

    # By the key itself, as it was found somewhere.
    revoked = keys(url, "revoke", key.text)
    assert (revoked.stdout, revoked.stderr) == ("", f"{key.id} is revoked.\n")
    keys(url, "revoke", key.id)
    until(lambda: caller.reason(bearer(new.text)) == "UNAUTHENTICATED", within=5)
    assert f"{key.id}  booking  revoked" in keys(url, "list").stdout
    assert "or it was revoked" in keys(url, "rotate", key.id, succeeds=False).stderr


def test_the_key_itself_can_come_from_standard_input(guarded: Guarded) -> None:
    """Where no other user of the machine can see it."""
    url = guarded.database_url
    create = ("create", "--subject", "a", "--all-organizations", *READER)
    key = read_key(keys(url, *create).stdout.strip())
    assert key is not None
    rotated = read_key(keys(url, "rotate", "-", given=f"{key.text}\n").stdout.strip())
    assert rotated is not None
    assert (rotated.id, rotated.text == key.text) == (key.id, False)
    revoked = keys(url, "revoke", "-", given=f"  {rotated.text}")
    assert revoked.stderr == f"{key.id} is revoked.\n"
    assert keys(url, "revoke", "-", given=key.id).stderr == f"{key.id} is revoked.\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "is - but standard input begins without a key or id"),
        ("\napk_aaaa", "is - but standard input begins without a key or id"),
        ("apk_secret", "is not a complete key; give its id"),
    ],
)
def test_standard_input_without_a_key_is_an_error(
    guarded: Guarded, given: str, message: str
) -> None:
    done = keys(guarded.database_url, "revoke", "-", given=given, succeeds=False)
    assert message in done.stderr
    assert "secret" not in done.output


def test_a_key_for_all_organizations(guarded: Guarded, caller: Caller) -> None:
    created = keys(
        guarded.database_url,
        *("create", "--subject", "ops", "--all-organizations", "--scope", "appointments.write"),
    )
    assert caller.write(bearer(created.stdout.strip())) == ""
    assert re.search(
        r"ops +valid +all +appointments.write", keys(guarded.database_url, "list").stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create",), "Missing option '--subject'"),
        (("create", "--subject", "a", *READER), "Give --organization, once or several times"),
        (
            ("create", "--subject", "a", *READER, "--organization", "o", "--all-organizations"),
            "Give --organization, once or several times, or --all-organizations.",
        ),
        (
            ("create", "--subject", "a", "--all-organizations", "--scope", "write"),
            "'write' is not one of 'appointments.read', 'appointments.write'",
        ),
        (
            ("create", "--subject", "", "--all-organizations", *READER),
            "must have 1 to 256 characters, no control characters",
        ),
        (
            ("create", "--subject", "a", "--organization", "o" * 129, *READER),
            "must have 1 to 128 characters, no control characters",
        ),
        (
            ("create", "--subject", "a", "--organization", "o", *READER, "--expires-in", "soon"),
            "must be a number and s, m, h or d, such as 90d",
        ),
        (("revoke", "nothing"), "error: there is no key nothing"),
        (("rotate", "nothing"), "error: there is no key nothing"),
        (("revoke", "apk_aaaa"), "Invalid value for 'ID': is not a complete key; give its id"),
    ],
)
def test_wrong_arguments_are_named(
    guarded: Guarded, arguments: tuple[str, ...], message: str
) -> None:
    done = keys(guarded.database_url, *arguments, succeeds=False)
    assert message in done.stderr
    assert done.stdout == ""


def test_the_services_login_cannot_make_keys(guarded: Guarded) -> None:
    with psycopg.connect(guarded.database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS access_login")
        connection.execute("CREATE ROLE access_login LOGIN")
        connection.execute("GRANT appointments_service TO access_login")
        try:
            url = make_conninfo(guarded.database_url, user="access_login")
            arguments = ("create", "--subject", "a", "--all-organizations", *READER)
            done = keys(url, *arguments, succeeds=False)
            assert done.stderr == (
                "error: the user of DATABASE_URL may not write the table api_keys; use the one"
                " that runs the migrations\n"
            )
        finally:
            connection.execute("DROP ROLE access_login")
