"""The client's token: from a file or a variable, right and wrong."""

from pathlib import Path

import pytest

from service.access.key_table import KeyTable
from service.access.principal import READ
from tests.access.caller import create
from tests.access.conftest import Guarded
from tests.client.command import Client

ENTRY = '{"id":"a","start":"2030-01-07T10:00:00Z","end":"2030-01-07T10:30:00Z"}'


@pytest.fixture
def client(guarded: Guarded, organization: str, tmp_path: Path) -> Client:
    client = Client(address=guarded.program.address, organization=organization, directory=tmp_path)
    client.write("one.jsonl", ENTRY)
    return client


def test_the_token_of_a_file_or_a_variable(client: Client, table: KeyTable) -> None:
    client.write("token", f"{create(table, client.organization).text}\n")
    assert client.run("import", "one.jsonl", "--token-file", "token").output == "1 CREATED\n"
    variable = {"APPOINTMENTS_TOKEN": create(table).text}
    assert client.run("import", "one.jsonl", variables=variable).output == "1 UNCHANGED\n"


def test_no_token_a_wrong_one_and_one_that_may_not_write(client: Client, table: KeyTable) -> None:
    for token, reason in (
        ("", "UNAUTHENTICATED"),
        ("wrong", "UNAUTHENTICATED"),
        (create(table, scopes=(READ,)).text, "PERMISSION_DENIED"),
        (create(table, "another").text, "PERMISSION_DENIED"),
    ):
        done = client.run("import", "one.jsonl", variables={"APPOINTMENTS_TOKEN": token})
        assert (done.code, done.output) == (3, "")
        assert done.errors.startswith(f"client: {reason}: ")
        assert done.errors.count("\n") == 1
        assert ("APPOINTMENTS_TOKEN" in done.errors) == (reason == "UNAUTHENTICATED")
