"""What callers get while the database or the issuer is away, and what a watch does then."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.message import Message

from local.stack import DATABASE
from service.access.key_table import KeyTable
from service.access.principal import READ, WEBHOOKS
from tests.access.caller import Caller, Metadata, bearer, calling, create, key_table
from tests.access.conftest import Guarded
from tests.access.issuer import AUDIENCE, ISSUER, SigningKey, settings
from tests.api import refusal
from tests.conftest import OwnPostgres, StartProgram
from tests.observing import until


def test_without_the_database_keys_are_refused_and_the_service_recovers(
    own_postgres: OwnPostgres,
    start_service: StartProgram,
    guarded: Guarded,
    organization: str,
) -> None:
    postgres = own_postgres()
    url = postgres.url(DATABASE)
    service = start_service(DATABASE_URL=url, **settings(guarded.keys_file))
    with key_table(url) as table:
        kept, revoked = create(table, organization), create(table, organization)
    with calling(service, organization) as caller:
        token = bearer(guarded.signer.token(organization))
        assert caller.write(bearer(kept.text)) == caller.reason(bearer(revoked.text)) == ""
        postgres.stop(immediate=True)
        stopped = time.monotonic()
        for each in (kept, revoked):
            until(lambda: caller.reason(bearer(kept.text)) == "ACCESS_UNAVAILABLE", within=5)
            refused = caller.get(bearer(each.text))
            assert refused is not None
            assert (refused.code, refused.retry_after) == (grpc.StatusCode.UNAVAILABLE, 1)
            assert refused.message.startswith("API keys cannot be checked")
        assert time.monotonic() - stopped < 5
        service.wait_for_event(
            lambda event: event["event"] == "API keys cannot be read; they are refused soon"
        )
        # Tokens need no database, so their callers get its own error, or a refusal at once: it is
        # decided before anything is read.
        assert caller.reason(token) == "DATABASE_UNAVAILABLE"
        began = time.monotonic()
        other = bearer(guarded.signer.token("other"))
        for id in ("a", "no-such"):
            assert caller.reason(other, id) == "PERMISSION_DENIED"
        assert time.monotonic() - began < 0.5
        postgres.start()
        with key_table(url) as table:
            table.revoke(revoked.id)
        until(lambda: caller.reason(bearer(kept.text)) == "")
        until(lambda: caller.reason(bearer(revoked.text)) == "UNAUTHENTICATED", within=3)
        service.wait_for_event(lambda event: event["event"] == "API keys can be read again")


@contextmanager
def stopped(url: str, service_connection: str) -> Iterator[None]:
    """Stop the server processes of sessions whose last statement contains a text."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE position(%s IN query) > 0"
            " AND pid <> pg_backend_pid() AND datname = current_database()",
            (service_connection,),
        ).fetchall()
    assert found
    for (pid,) in found:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for (pid,) in found:
            os.kill(pid, signal.SIGCONT)


def test_a_process_that_cannot_see_a_revocation_refuses_the_key(
    caller: Caller, guarded: Guarded, table: KeyTable
) -> None:
    """Only its session that reads keys hangs. Everything else works."""
    key = create(table, caller.organization)
    assert caller.write(bearer(key.text)) == ""
    with stopped(guarded.database_url, "FROM public.api_keys WHERE version >="):
        table.revoke(key.id)
        revoked = time.monotonic()
        until(lambda: caller.reason(bearer(key.text)) == "ACCESS_UNAVAILABLE", within=5)
        assert time.monotonic() - revoked < 5
        assert caller.reason(bearer(guarded.signer.token(caller.organization))) == ""
    until(lambda: caller.reason(bearer(key.text)) == "UNAUTHENTICATED")


class Watching:
    """A watch, and how it ended."""

    def __init__(self, caller: Caller, metadata: Metadata) -> None:
        request = rpc.WatchAppointmentsRequest(organization_id=caller.organization)
        self._stream: Any = caller.stub.WatchAppointments(request, metadata=metadata, timeout=60)

    def next(self) -> Message:
        message: Message = next(self._stream)
        return message

    def end(self) -> str:
        """Return the reason why it ended."""
        try:
            for _ in self._stream:
                pass
        except grpc.RpcError as error:
            return refusal(error).reason
        return ""


def test_a_watch_ends_when_its_key_is_revoked(caller: Caller, table: KeyTable) -> None:
    writer, key, kept = (create(table, caller.organization) for _ in range(3))
    assert caller.write(bearer(writer.text)) == ""
    watch, other = Watching(caller, bearer(key.text)), Watching(caller, bearer(kept.text))
    watch.next(), other.next()
    table.revoke(key.id)
    revoked = time.monotonic()
    assert watch.end() == "UNAUTHENTICATED"
    assert time.monotonic() - revoked < 5
    assert caller.write(bearer(writer.text), "b", 10) == ""
    assert other.next()


def test_a_watch_ends_when_its_token_expires(caller: Caller, guarded: Guarded) -> None:
    token = guarded.signer.token(caller.organization, lifetime=2)
    assert caller.write(bearer(token)) == ""
    watch = Watching(caller, bearer(token))
    watch.next()
    began = time.monotonic()
    assert watch.end() == "UNAUTHENTICATED"
    assert time.monotonic() - began < 2 + 5


def test_a_watch_ends_while_its_process_cannot_see_a_revocation(
    caller: Caller, guarded: Guarded, table: KeyTable
) -> None:
    key = create(table, caller.organization)
    assert caller.write(bearer(key.text)) == ""
    watch = Watching(caller, bearer(key.text))
    watch.next()
    with stopped(guarded.database_url, "FROM public.api_keys WHERE version >="):
        table.revoke(key.id)
        revoked = time.monotonic()
        assert watch.end() == "ACCESS_UNAVAILABLE"
        assert time.monotonic() - revoked < 5


@pytest.mark.parametrize("metadata", [(), bearer("wrong")])
def test_a_watch_without_a_credential_does_not_start(caller: Caller, metadata: Metadata) -> None:
    assert Watching(caller, metadata).end() == "UNAUTHENTICATED"


def test_a_watch_needs_its_scope(caller: Caller, table: KeyTable) -> None:
    key = create(table, caller.organization, scopes=(WEBHOOKS,))
    assert Watching(caller, bearer(key.text)).end() == "PERMISSION_DENIED"
    other = create(table, "other", scopes=(READ,))
    assert Watching(caller, bearer(other.text)).end() == "PERMISSION_DENIED"


def test_the_service_starts_without_the_issuer(
    guarded: Guarded, start_service: StartProgram, table: KeyTable, organization: str
) -> None:
    service = start_service(
        DATABASE_URL=guarded.database_url,
        ACCESS_CONTROL="on",
        JWT_KEYS_URL="http://127.0.0.1:1/keys",
        JWT_ISSUER=ISSUER,
        JWT_AUDIENCE=AUDIENCE,
    )
    service.wait_for_event(lambda event: event["event"] == "the signing keys cannot be read")
    with calling(service, organization) as caller:
        key = create(table, organization)
        assert caller.write(bearer(key.text)) == ""
        refused = caller.get(bearer(SigningKey("any").token(organization)))
        assert refused is not None
        assert (refused.reason, refused.code) == (
            "ACCESS_UNAVAILABLE",
            grpc.StatusCode.UNAVAILABLE,
        )
