"""What a user meets who stops an import, or mistypes an address or a path."""

import json
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from local.rabbitmq import free_ports
from tests.api import MORNING, Organization
from tests.certificates import Authority, Files
from tests.client.command import Client
from tests.conftest import StartProgram
from tests.observing import until

ROWS = 12_000
# Slow enough to be interrupted.
SLOW = ("--batch-size", "40", "--in-flight", "2")


@pytest.fixture
def rows(client: Client) -> str:
    """A file with many appointments, the first of which cannot be read."""

    def lines() -> Iterator[str]:
        yield "broken"
        for number in range(ROWS):
            start = MORNING + timedelta(minutes=number)
            entry = {"id": f"row-{number}", "start": start.isoformat()}
            yield json.dumps(entry | {"end": (start + timedelta(minutes=1)).isoformat()})

    client.write("rows.jsonl", "\n".join(lines()))
    return "rows.jsonl"


def in_the_middle(client: Client, rows: str, number: signal.Signals) -> int:
    """Start an import, send it a signal when it has recorded progress; return its exit code."""
    process = client.start("import", rows, *SLOW)
    until((client.directory / f"{rows}.progress").exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert b"Traceback" not in errors
    return process.returncode


def test_an_interrupted_import_continues(client: Client, org: Organization, rows: str) -> None:
    assert in_the_middle(client, rows, signal.SIGINT) == 130
    recorded = json.loads((client.directory / f"{rows}.progress").read_text())
    stored = len(org.listed(page_size=1000))
    assert recorded["items"] == stored + 1 < ROWS
    continued = client.run("import", rows)
    assert f"continues after {stored + 1:,} entries" in continued.errors
    assert (continued.code, continued.counts) == (1, {"CREATED": ROWS, "UNREADABLE": 1})
    assert [item["line"] for item in client.report(rows)] == [1]
    assert not (client.directory / f"{rows}.progress").exists()
    assert len(org.listed(page_size=1000)) == org.list_page().revision == ROWS


def test_a_killed_import_sends_again_what_it_had_not_recorded(
    client: Client, org: Organization, rows: str
) -> None:
    assert in_the_middle(client, rows, signal.SIGKILL) == -signal.SIGKILL
    continued = client.run("import", rows)
    counts = continued.counts
    assert counts.pop("UNREADABLE") == 1
    assert counts.keys() <= {"CREATED", "UNCHANGED"}
    assert sum(counts.values()) == org.list_page().revision == ROWS


def test_another_file_or_option_begins_anew(client: Client, rows: str) -> None:
    assert in_the_middle(client, rows, signal.SIGTERM) == 130
    other = client.run("import", rows, "--time-zone", "UTC")
    assert "continues" not in other.errors
    assert other.counts["CREATED"] + other.counts["UNCHANGED"] == ROWS
    assert client.run("import", rows, "--restart").counts["UNCHANGED"] == ROWS


def test_a_service_that_restarts_meanwhile_is_waited_for(
    start_service: StartProgram, client: Client, org: Organization, rows: str
) -> None:
    [port] = free_ports(1)
    first = start_service(GRPC_PORT=str(port))
    process = client.start("import", rows, *SLOW, "--address", f"localhost:{port}")
    until((client.directory / f"{rows}.progress").exists)
    first.stop()
    time.sleep(1)  # attempts fail meanwhile
    start_service(GRPC_PORT=str(port))
    output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors.count(b"line 1:")) == (1, 1), errors
    assert output.startswith(b"12,000 CREATED, 1 UNREADABLE") or b"UNCHANGED" in output
    assert org.list_page().revision == ROWS


def test_nobody_at_the_address(client: Client) -> None:
    client.write("one.jsonl", "")
    for command in (["import", "one.jsonl"], ["export", "x.jsonl"], ["export", "-"]):
        done = client.run(*command, "--address", "localhost:1")
        assert (done.code, done.output) == (3, "")
        assert "no service answers at localhost:1: " in done.errors
        assert "Connection refused" in done.errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "none.jsonl"], "none.jsonl cannot be read: No such file"),
        (["import", "."], "does not say its format"),
        (["import", ".", "--format", "jsonl"], "Is a directory"),
        (["import", "utf16.jsonl"], "UTF-16"),
        (["import", "names"], "the name of names does not say its format: add --format"),
        (["import", "rows.jsonl", "--report", "no/report"], "name another file by --report"),
        (["export", "no/file.jsonl"], "no/file.jsonl cannot be written"),
        (["export", "x.jsonl", "--certificate", "one.jsonl"], "belong together"),
        (["export", "x.jsonl", "--ca", "none"], "does not exist"),
    ],
)
def test_a_wrong_command_is_2(client: Client, rows: str, arguments: list[str], says: str) -> None:
    client.write("utf16.jsonl", "{}".encode("utf-16"))
    client.write("one.jsonl", "")
    done = client.run(*arguments)
    assert (done.code, says in done.errors) == (2, True), done.errors


def test_a_token_is_not_sent_unencrypted_to_another_machine(client: Client) -> None:
    client.write("token", "secret\n")
    done = client.run("export", "-", "--address", "192.0.2.1:50051", "--token-file", "token")
    assert (done.code, "unencrypted" in done.errors) == (2, True)
    client.write("token", "two words")
    done = client.run("export", "-", "--token-file", "token")
    assert (done.code, "the token must be one word" in done.errors) == (2, True)


def test_tls(start_service: StartProgram, client: Client, tmp_path: Path) -> None:
    authority = Authority()
    files = Files(tmp_path).write(authority.issue(), authority)
    program = start_service(
        GRPC_TLS_CERTIFICATE=str(files.certificate),
        GRPC_TLS_KEY=str(files.key),
        GRPC_TLS_CLIENT_CA=str(files.ca),
    )
    client.write("one.jsonl", "")
    address = ("--address", program.address)
    shown = ("--certificate", str(files.certificate), "--key", str(files.key))
    assert client.run("export", "-", *address, "--ca", str(files.ca), *shown).code == 0
    for wrong in ([], ["--ca", str(files.ca)], ["--tls", *shown]):
        done = client.run("export", "-", *address, *wrong)
        assert (done.code, "no service answers" in done.errors) == (3, True), done.errors
