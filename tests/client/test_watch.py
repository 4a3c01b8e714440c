"""Changes in the terminal, and as JSON."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import IO

from local.rabbitmq import free_ports
from tests.api import Organization
from tests.client.command import Client
from tests.conftest import StartProgram


@contextmanager
def watching(client: Client, *arguments: str) -> Iterator[IO[bytes]]:
    """Yield the output of a watch, which ends with Ctrl-C and without complaint."""
    process = client.start("watch", *arguments, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process.stdout
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()


def test_every_change_is_a_line(client: Client, org: Organization) -> None:
    org.upsert("[bold]a", 0, 30, resource_id="room 1", title="Planning")
    with watching(client, "--after-revision", "0") as output:
        line = output.readline().decode()
        assert line.split()[0] == "1"
        assert "CREATED    2030-01-07T08:00 - 08:30  [bold]a  room 1  Planning" in line
        org.cancel("[bold]a")
        assert "CANCELLED  2030-01-07T08:00 - 08:30  [bold]a" in output.readline().decode()


def test_as_json_of_one_resource(client: Client, org: Organization) -> None:
    with watching(client, "--json", "--after-revision", "0", "--resource", "room 1") as output:
        org.upsert("a", 0, 30, resource_id="room 2")
        org.upsert("b", 0, 30, resource_id="room 1", attributes={"x": 1})
        change = json.loads(output.readline())
    assert (change["revision"], change["change"]) == (2, "CREATED")
    assert change["appointment"]["attributes"] == {"x": 1}


def test_without_a_revision_it_begins_with_the_next_change(
    client: Client, org: Organization
) -> None:
    org.upsert("before", 0, 30)
    written = Event()
    with watching(client, "--json") as output:

        def write() -> None:
            """Write until the watch, which begins at a moment of its own, has shown a change."""
            number = 0
            while not written.wait(0.1):
                number += 1
                org.upsert(f"after {number}", 60 * number, 60 * number + 30)

        writer = Thread(target=write)
        writer.start()
        try:
            change = json.loads(output.readline())
        finally:
            written.set()
            writer.join()
    assert change["appointment"]["id"].startswith("after ")


def test_a_service_that_restarts_is_waited_for(
    start_service: StartProgram, client: Client, org: Organization
) -> None:
    [port] = free_ports(1)
    first = start_service(GRPC_PORT=str(port))
    place = ("--address", f"localhost:{port}")
    with watching(client, "--json", "--after-revision", "0", *place) as output:
        org.upsert("a", 0, 30)
        assert json.loads(output.readline())["revision"] == 1
        first.stop()
        org.upsert("b", 60, 90)
        start_service(GRPC_PORT=str(port))
        assert json.loads(output.readline())["revision"] == 2


def test_a_revision_that_is_not_there_yet(client: Client) -> None:
    done = client.run("watch", "--after-revision", "5")
    assert done.code == 3
    assert "after_revision" in done.errors
