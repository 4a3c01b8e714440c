"""Statements share the connections."""

import asyncio
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.session import CALLER_ROLE
from tests.databases import database_of


@pytest.fixture
def url_of_one_connection(database_url: str) -> Iterator[str]:
    """The URL of a user for whom the server accepts a single connection."""
    user = "of_one_connection"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {user} LOGIN CONNECTION LIMIT 1 IN ROLE {CALLER_ROLE}".encode())
        try:
            yield make_conninfo(database_url, user=user)
        finally:
            admin.execute(f"DROP ROLE {user}".encode())


async def test_statements_keep_their_order_if_connections_are_lacking(
    url_of_one_connection: str,
) -> None:
    """Two may run, but there is one connection: the second statement waits in the pool for it."""
    finished: list[int] = []

    async def run(number: int) -> None:
        await database.fetch_across("SELECT pg_sleep(0.01)")
        finished.append(number)

    database = database_of(Database, url_of_one_connection, Metrics(), connections=2, max_waiting=4)
    async with database:
        await asyncio.gather(*map(run, range(6)))

    assert finished == list(range(6))


class Busy(Database):
    """After a statement's turn has come, the program does other things first, if it `is_busy`."""

    is_busy = False

    async def _wait_for_turn(self) -> None:
        await super()._wait_for_turn()
        if self.is_busy:
            time.sleep(1.05)  # noqa: ASYNC251  blocks the event loop


async def test_a_statement_whose_turn_comes_late_gets_an_idle_connection(database_url: str) -> None:
    async with database_of(Busy, database_url, Metrics(), connection_timeout=1) as database:
        await database.fetch_across("SELECT 1")
        database.is_busy = True
        assert await database.fetch_across("SELECT 2") == [(2,)]
