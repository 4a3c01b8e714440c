"""API keys of a running service: new, wrong, rotated, expired and revoked ones."""

import time
from datetime import timedelta
from functools import partial

import psycopg
import pytest

from service.access.api_key import ApiKey, new_id, new_key, read_key
from service.access.key_table import KeyTable
from service.access.principal import ADMIN, READ, WRITE
from tests.access.caller import Caller, bearer, calling, create
from tests.access.conftest import Guarded
from tests.conftest import StartProgram
from tests.observing import until

# Seconds after which a change of a key is known, with much to spare.
SOON = 3.0


def refuses(caller: Caller, key: ApiKey) -> bool:
    return caller.reason(bearer(key.text)) == "UNAUTHENTICATED"


def test_a_new_key_works_at_once(caller: Caller, table: KeyTable) -> None:
    for _ in range(5):
        key = create(table, caller.organization)
        assert caller.write(bearer(key.text)) == ""
        assert caller.reason(bearer(key.text)) == ""


def test_a_key_is_for_its_organizations_and_scopes(caller: Caller, table: KeyTable) -> None:
    everywhere, here, elsewhere = (
        create(table),
        create(table, "other", caller.organization),
        create(table, "other"),
    )
    reader = create(table, caller.organization, scopes=(READ,))
    admin = create(table, caller.organization, scopes=(ADMIN,))
    assert caller.write(bearer(everywhere.text)) == caller.write(bearer(here.text)) == ""
    for key in (elsewhere, admin):
        for id in ("a", "no-such"):
            assert caller.reason(bearer(key.text), id) == "PERMISSION_DENIED"
    assert caller.reason(bearer(reader.text)) == ""
    assert caller.write(bearer(reader.text)) == "PERMISSION_DENIED"


def test_the_actor_of_a_write_is_the_subject_of_its_key(caller: Caller, table: KeyTable) -> None:
    key = create(table, caller.organization)
    assert caller.write(bearer(key.text)) == ""
    assert (
        caller.write((*bearer(key.text), ("x-actor", "somebody")), minute=1) == "PERMISSION_DENIED"
    )
    admin = create(table, caller.organization, scopes=(WRITE, ADMIN))
    assert caller.write((*bearer(admin.text), ("x-actor", "somebody")), minute=2) == ""
    assert caller.actors(bearer(key.text)) == ["booking", "somebody"]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YWxpY2U6c2VjcmV0",
        "Bearer apk_short",
        "Bearer two words",
        "Bearer not-a-token",
    ],
)
def test_what_is_no_credential_is_refused(caller: Caller, authorization: str) -> None:
    assert caller.reason((("authorization", authorization),)) == "UNAUTHENTICATED"
    assert caller.reason(()) == "UNAUTHENTICATED"


def test_a_wrong_secret_is_refused_and_a_typing_error_is_named(
    caller: Caller, table: KeyTable
) -> None:
    key = create(table)
    refused = caller.get(bearer(new_key(key.id).text))
    assert refused is not None
    assert (refused.reason, refused.message) == ("UNAUTHENTICATED", "the API key is not known")
    for position in (10, 40, len(key.text) - 1):
        other = "a" if key.text[position] != "a" else "b"
        typed = key.text[:position] + other + key.text[position + 1 :]
        refused = caller.get(bearer(typed))
        assert refused is not None
        assert refused.message == "the API key is not complete, or has a typing error"


def test_unknown_keys_cost_no_query_each(caller: Caller, guarded: Guarded, table: KeyTable) -> None:
    """Not known ones make the service look again, at most ten times a second."""
    create(table)
    known = new_key(create(table).id)
    with psycopg.connect(guarded.database_url, autocommit=True) as connection:

        def scans() -> int:
            row = connection.execute(
                "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'api_keys'"
            ).fetchone()
            assert row is not None
            return int(row[0])

        until(lambda: scans() > 0)  # the service's session reports its statistics with delay
        before, began = scans(), time.monotonic()
        calls = [
            caller.stub.GetAppointment.future(
                caller.request(), metadata=bearer(key.text), timeout=30
            )
            for key in [new_key(new_id()) for _ in range(500)] + [known] * 500
        ]
        for call in calls:
            assert "API key is not known" in str(call.exception())
        seconds = time.monotonic() - began
        time.sleep(2)  # for the statistics
        assert scans() - before < 12 * (seconds + 2)


def test_an_expired_key_is_refused(caller: Caller, table: KeyTable) -> None:
    key = table.create(
        subject="booking", organizations=None, scopes=[READ, WRITE], expires_in=timedelta(seconds=3)
    )
    assert caller.write(bearer(key.text)) == ""
    until(lambda: refuses(caller, key), within=3 + SOON)
    refused = caller.get(bearer(key.text))
    assert refused is not None
    assert refused.message == "the API key has expired"


def test_a_rotated_key_has_two_secrets_for_a_time(caller: Caller, table: KeyTable) -> None:
    old = create(table)
    assert caller.write(bearer(old.text)) == ""
    new = table.rotate(old.id, overlap=timedelta(seconds=4))
    assert new.id == old.id
    assert caller.reason(bearer(new.text)) == caller.reason(bearer(old.text)) == ""
    until(lambda: caller.reason(bearer(old.text)) == "UNAUTHENTICATED", within=4 + SOON)
    refused = caller.get(bearer(old.text))
    assert refused is not None
    assert refused.message == "the API key was rotated; use the new one"
    assert caller.reason(bearer(new.text)) == ""


def test_a_revoked_key_is_refused_by_every_process_within_five_seconds(
    caller: Caller, guarded: Guarded, table: KeyTable, start_service: StartProgram
) -> None:
    other = start_service(DATABASE_URL=guarded.database_url, ACCESS_CONTROL="on")
    key, kept = create(table), create(table)
    with calling(other, caller.organization) as second:
        assert caller.write(bearer(key.text)) == ""
        assert second.reason(bearer(key.text)) == ""
        table.revoke(key.id)
        revoked = time.monotonic()
        for each in (caller, second):
            until(partial(refuses, each, key))
            refused = each.get(bearer(key.text))
            assert refused is not None
            assert (refused.reason, refused.message) == (
                "UNAUTHENTICATED",
                "the API key was revoked",
            )
            assert each.reason(bearer(kept.text)) == ""
        assert time.monotonic() - revoked < 5


def test_a_key_that_is_revoked_by_sql_is_refused_too(
    caller: Caller, guarded: Guarded, table: KeyTable
) -> None:
    key = create(table)
    assert caller.write(bearer(key.text)) == ""
    with psycopg.connect(guarded.database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="revoke the API key"):
            connection.execute("DELETE FROM api_keys WHERE key_id = %s", (key.id,))
        connection.execute("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", (key.id,))
    until(lambda: refuses(caller, key), within=SOON)


def test_keys_of_a_restored_database_are_read_again(
    caller: Caller, guarded: Guarded, table: KeyTable
) -> None:
    """The latest key is gone, as if the table were that of an earlier time."""
    kept, lost = create(table), create(table)
    assert caller.write(bearer(kept.text)) == caller.reason(bearer(lost.text)) == ""
    with psycopg.connect(guarded.database_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # without the trigger
        connection.execute("DELETE FROM api_keys WHERE key_id = %s", (lost.id,))
    until(lambda: caller.reason(bearer(lost.text)) == "UNAUTHENTICATED", within=SOON)
    assert caller.reason(bearer(kept.text)) == ""


def test_no_change_is_missed_that_is_committed_later_than_another(
    caller: Caller, guarded: Guarded, table: KeyTable
) -> None:
    """Changes are numbered in the order of their commits, whatever the order of the statements."""
    first, second = create(table), create(table)
    assert caller.write(bearer(first.text)) == caller.reason(bearer(second.text)) == ""
    with (
        psycopg.connect(guarded.database_url) as slow,
        psycopg.connect(guarded.database_url, autocommit=True) as fast,
    ):
        revoke = "UPDATE api_keys SET revoked_at = now() WHERE key_id = %s"
        slow.execute(revoke, (first.id,))
        fast.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            fast.execute(revoke, (second.id,))
        slow.commit()
        fast.execute(revoke, (second.id,))
    for key in (first, second):
        until(partial(refuses, caller, key), within=SOON)


def test_the_services_role_can_only_read_keys(guarded: Guarded, table: KeyTable) -> None:
    create(table)
    with psycopg.connect(guarded.database_url, autocommit=True) as connection:
        connection.execute("SET ROLE appointments_service")
        for statement in (
            "UPDATE api_keys SET revoked_at = NULL",
            "DELETE FROM api_keys",
            "INSERT INTO api_keys (key_id) VALUES ('a')",
            "SELECT nextval('api_key_versions')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_no_secret_is_stored_or_logged(caller: Caller, guarded: Guarded, table: KeyTable) -> None:
    key = create(table)
    wrong = new_key(key.id)
    assert caller.write(bearer(key.text)) == ""
    assert caller.reason(bearer(wrong.text)) == caller.reason(bearer(wrong.text[:-1])) != ""
    guarded.program.wait_for_event(lambda event: event.get("credential") == f"key:{key.id}")
    logs = "\n".join(guarded.program.log_lines())
    with psycopg.connect(guarded.database_url) as connection:
        [stored] = connection.execute(
            "SELECT api_keys::text FROM api_keys WHERE key_id = %s", (key.id,)
        ).fetchall()
    for each in (key, wrong):
        secret = each.text.rpartition("_")[2][:20]
        assert secret not in logs
        assert secret not in stored[0]
        assert secret not in repr(each)


def test_a_key_is_read_back_from_its_text() -> None:
    key = new_key(new_id())
    assert read_key(key.text) == ApiKey(key.id, key.text)
    assert len({new_key(key.id).text for _ in range(100)}) == 100
    for text in (
        "",
        key.text.upper(),
        key.text + "a",
        f" {key.text}",
        key.text.replace("apk_", "ap_"),
    ):
        assert read_key(text) is None
