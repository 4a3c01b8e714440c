"""A service with access control, shared by the tests of a module."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from local.programs import Program
from service.access.key_table import KeyTable
from tests.access.caller import Caller, calling, key_table
from tests.access.issuer import SigningKey, settings, write_keys
from tests.conftest import CreateDatabase, StartProgram, listening


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A service that accepts API keys of its database, and tokens signed with `signer`."""

    database_url: str
    program: Program
    signer: SigningKey
    keys_file: Path


@pytest.fixture(scope="module")
def guarded(
    create_database: CreateDatabase, fork: StartProgram, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    url = create_database()
    path = tmp_path_factory.mktemp("issuer") / "keys.json"
    signer = SigningKey("first")
    write_keys(path, signer)
    with ExitStack() as stack:
        program = fork("service", {"DATABASE_URL": url, **settings(path), "LOG_LEVEL": "debug"})
        yield Guarded(
            database_url=url,
            program=listening(stack, program),
            signer=signer,
            keys_file=path,
        )


@pytest.fixture
def caller(guarded: Guarded, organization: str) -> Iterator[Caller]:
    with calling(guarded.program, organization) as caller:
        yield caller


@pytest.fixture
def table(guarded: Guarded) -> Iterator[KeyTable]:
    with key_table(guarded.database_url) as table:
        yield table
