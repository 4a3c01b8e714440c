"""Backups are restored, and consumers learn that time went back."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.postgres import NOT_DURABLE, EmbeddedPostgres, programs_directory
from local.programs import Program
from local.rabbitmq import RabbitMQ
from local.stack import DATABASE
from tests.api import TIMEOUT, Organization, refused
from tests.commands import run_command
from tests.conftest import OwnPostgres, StartProgram, listening
from tests.events.consumer import Consumer
from tests.observing import until
from tests.operations.submissions import Submissions
from tests.receiver import Receiver
from tests.rest.event_source import EventSource
from tests.rest_client import Client
from tests.verify.verified import check_sound
from tests.webhooks.hooked import QUICK, Hooked

# Programs and servers that start, with the machine busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ORGANIZATION = "restored"
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def run(program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL."""
    command = [str(programs_directory() / program), *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def new_epoch(url: str) -> subprocess.CompletedProcess[str]:
    return run_command(url, "new-epoch")


def epoch_of(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()[2]


@dataclass(frozen=True, slots=True)
class Running:
    gateway: Program
    org: Organization
    rest: Client
    submissions: Submissions


@contextmanager
def programs(fork: StartProgram, url: str, **settings: str) -> Iterator[Running]:
    """A service, a worker and a gateway on a database."""
    settings = {"DATABASE_URL": url, **QUICK, **settings}
    with ExitStack() as stack:
        service = listening(stack, fork("service", settings))
        listening(stack, fork("service", settings, "worker"))
        gateway = listening(stack, fork("gateway", {"SERVICE_ADDRESS": service.address}))
        channel = stack.enter_context(grpc.insecure_channel(service.address))
        yield Running(
            gateway,
            Organization(AppointmentServiceStub(channel), ORGANIZATION),
            Client(gateway, ORGANIZATION),
            Submissions(channel, ORGANIZATION),
        )


def test_a_dump_is_restored(
    own_postgres: OwnPostgres,
    fork: StartProgram,
    reachable_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """pg_dump and pg_restore, into a new database of another server."""
    server, other = own_postgres(), own_postgres(migrated=False)
    dump = str(reachable_path / "appointments.dump")
    with programs(fork, server.url(DATABASE)) as before:
        for number in range(10):
            before.org.upsert(f"{number}", number, number + 1, idempotency_key=f"{number}")
        before.org.cancel("3")
        run("pg_dump", "--format=custom", f"--file={dump}", server.url(DATABASE))
        page = before.org.list_page(page_size=4)
    with psycopg.connect(other.url(), autocommit=True) as connection:
        for role in ("appointments_caller", "appointments_service IN ROLE appointments_caller"):
            connection.execute(f"CREATE ROLE {role}".encode())
    url = other.url(DATABASE)
    run("pg_restore", "--exit-on-error", f"--dbname={url}", dump)
    assert check_sound(url, capsys)["changes"] == 11
    # Nothing was lost since the dump, so there is no new epoch and everything goes on.
    with programs(fork, url) as after:
        rest = after.org.list_page(page_size=4, page_token=page.next_page_token)
        assert [found.id for found in rest.appointments] == ["5", "6", "7", "8"]
        after.org.upsert("0", 0, 1, title="changed", etag=page.appointments[0].etag)
        after.org.check_history()


class Archive:
    """A server whose WAL is archived, and its base backup."""

    def __init__(self, own_postgres: OwnPostgres, directory: Path) -> None:
        self._directory = directory
        directory.chmod(0o777)
        # Under another name until it is complete.
        copy = f"cp %p {directory}/%f.part && mv {directory}/%f.part {directory}/%f"
        self.server: EmbeddedPostgres = own_postgres(archive_mode="on", archive_command=copy)
        self.url = self.server.url(DATABASE)

    def back_up(self) -> None:
        target = self._directory / "base"
        run(
            "pg_basebackup",
            f"--dbname={self.server.url()}",
            f"--pgdata={target}",
            "--checkpoint=fast",
        )

    def mark(self, name: str) -> None:
        """Name this moment, and archive what leads to it."""
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_create_restore_point(%s)", [name])

    @contextmanager
    def restored(self, mark: str) -> Iterator[str]:
        """Stop the server, and yield the URL of another one with the state of a mark.

        In the end its data replaces those of the server, which starts again at the same address.
        """
        with psycopg.connect(self.server.url(), autocommit=True) as connection:
            found = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert found is not None
        until((self._directory / found[0]).exists)
        self.server.stop(immediate=True)
        data = self.server.directory
        owner = data.stat()
        other = EmbeddedPostgres(data.with_name("other"), NOT_DURABLE)
        shutil.copytree(self._directory / "base", other.directory)
        with (other.directory / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"restore_command = 'cp {self._directory}/%f %p'\n"
                f"recovery_target_name = '{mark}'\nrecovery_target_action = 'promote'\n"
            )
        (other.directory / "recovery.signal").touch()
        for path in (other.directory, *other.directory.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        other.directory.chmod(0o700)
        with other:
            with psycopg.connect(other.url(), autocommit=True) as connection:
                until(
                    lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
                )
            yield other.url(DATABASE)
        data.rename(data.with_name("lost"))
        other.directory.rename(data)
        self.server.start()


@pytest.fixture
def archive(own_postgres: OwnPostgres, reachable_path: Path) -> Archive:
    return Archive(own_postgres, reachable_path)


def test_consumers_learn_that_time_went_back(
    archive: Archive,
    fork: StartProgram,
    rabbitmq: RabbitMQ,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The programs run all the time, and lose only their connections."""
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        consumer = stack.enter_context(Consumer(rabbitmq, [f"{ORGANIZATION}.*"]))
        running = stack.enter_context(programs(fork, archive.url, AMQP_URL=rabbitmq.url))
        org, rest = running.org, running.rest
        hooked = Hooked(rest, org, receiver)
        hook = hooked.hook("/hook")
        archive.back_up()
        for number in range(4):
            org.upsert(f"{number}", number, number + 1)
        until(lambda: hooked.reached(hook) == 4)
        until(lambda: consumer.latest.get(ORGANIZATION) == 4)
        archive.mark("here")
        # What is lost. The same appointment has the revision 6 there and later here.
        org.upsert("lost", 10, 11)
        seen = org.upsert("0", 0, 1, title="lost").appointment
        lost = running.submissions.upsert("accepted", 20, 21)
        assert running.submissions.wait(lost).done
        page = org.list_page(page_size=2, include_cancelled=True)
        history = org.history("0", page_size=1)
        request = rpc.ListChangesRequest(organization_id=ORGANIZATION, page_size=2)
        changes = org.stub.ListChanges(request, timeout=TIMEOUT)
        assert not changes.HasField("epoch")
        source = stack.enter_context(EventSource(running.gateway, ORGANIZATION))
        watching = rpc.WatchAppointmentsRequest(organization_id=ORGANIZATION)
        stream = org.stub.WatchAppointments(watching, timeout=120)
        assert next(stream).revision == 7
        until(lambda: len(source.events) == 7)
        until(lambda: hooked.reached(hook) == 7)
        until(lambda: consumer.latest.get(ORGANIZATION) == 7)
        early = new_epoch(archive.url)
        assert early.returncode == 1
        assert "others are connected to the database" in early.stderr
        received = len(receiver.at("/hook"))
        with archive.restored("here") as url:
            assert check_sound(url, capsys)["changes"] == 4
            epoch = epoch_of(new_epoch(url))

        # Who listens hears of it at once: streams, webhooks and RabbitMQ.
        ended = refused(lambda: list(stream))
        assert (ended.reason, ended.organization_revision) == ("EPOCH_ENDED", 4)
        until(lambda: len(source.events) >= 12)
        assert source.events[7]["event"] == "reset"
        assert [event["id"] for event in source.events[8:12]] == [
            f"{revision}.{epoch}" for revision in range(1, 5)
        ]
        until(lambda: len(receiver.at("/hook")) > received)
        again = receiver.at("/hook")[received]
        assert (again.revision, again.json["epoch"]) == (4, epoch)
        assert again.headers["webhook-id"] == f"{hook['id']}.4.{epoch}"
        until(lambda: any(each.headers.get("epoch") == epoch for each in consumer.messages))

        # A revision that was lost, and its successor.
        org.upsert("another", 30, 31)
        written = org.upsert("0", 0, 1, title="kept").appointment
        assert written.revision == seen.revision
        assert org.refused("0", 0, 1, etag=seen.etag).reason == "ETAG_MISMATCH"
        assert org.get("0").etag != seen.etag
        known = rest.call("GET", "/appointments/0", If_None_Match=f'"{seen.etag}"')
        assert known.status == 200
        known = rest.call("GET", "/appointments/0", If_None_Match=known.headers["ETag"])
        assert known.status == 304
        changed = org.upsert("0", 0, 1, title="changed", etag=written.etag)
        assert changed.appointment.version == 3
        until(lambda: hooked.reached(hook) == 7)
        ids = [each.headers["webhook-id"] for each in receiver.at("/hook") if each.revision == 6]
        assert ids == [f"{hook['id']}.6", f"{hook['id']}.6.{epoch}"]
        until(
            lambda: (
                [each.message_id for each in consumer.messages if each.headers["revision"] == 6]
                == [f"{ORGANIZATION}/6", f"{ORGANIZATION}/6/{epoch}"]
            )
        )
        until(lambda: source.last_id == f"7.{epoch}")

        # Pages, positions and operations.
        for call, options in (
            (org.list_page, {"include_cancelled": True, "page_token": page.next_page_token}),
            (partial(org.history, "0"), {"page_token": history.next_page_token}),
        ):
            found = refused(call, **options)
            assert (found.code, found.reason) == (FAILED_PRECONDITION, "EPOCH_ENDED")
            assert "begin anew" in found.message
        query = {"includeCancelled": "true", "pageToken": page.next_page_token}
        answer = rest.call("GET", "/appointments", **query)
        assert (answer.status, answer.json["code"]) == (410, "EPOCH_ENDED")
        assert len(org.listed()) == 5
        list_changes = partial(org.stub.ListChanges, timeout=TIMEOUT)
        request.page_token = changes.next_page_token
        assert refused(list_changes, request).reason == "EPOCH_ENDED"
        request = rpc.ListChangesRequest(organization_id=ORGANIZATION, after_revision=5)
        latest = list_changes(request)
        assert (latest.epoch, len(latest.entries)) == (epoch, 2)
        request.epoch = ""
        assert refused(list_changes, request).reason == "EPOCH_ENDED"
        request.epoch = epoch
        assert list_changes(request) == latest
        assert refused(running.submissions.get, lost.name).reason == "EPOCH_ENDED"
        org.check_history()
    check_sound(archive.url, capsys)


def test_a_replica_of_another_epoch_answers_nothing(
    own_postgres: OwnPostgres, temporary_directory: Path, fork: StartProgram
) -> None:
    """It has gone on by itself, as one may that was forgotten when the primary was restored."""
    primary = own_postgres()
    replica = primary.standby(temporary_directory / "forgotten")
    with ExitStack() as stack:
        stack.enter_context(replica)
        with psycopg.connect(replica.url(), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
        epoch_of(new_epoch(primary.url(DATABASE)))
        settings = {
            "DATABASE_URL": primary.url(DATABASE),
            "DATABASE_READ_URL": replica.url(DATABASE),
        }
        service = listening(stack, fork("service", settings))
        service.wait_for_event(lambda event: event["event"] == "replica available")
        channel = stack.enter_context(grpc.insecure_channel(service.address))
        org = Organization(AppointmentServiceStub(channel), ORGANIZATION)
        org.upsert("a", 0, 1)
        assert org.get("a", min_revision=0).id == "a"
        assert list(org.listed(min_revision=0)) == ["a"]


def test_an_epoch_begins_after_the_one_before(own_postgres: OwnPostgres) -> None:
    url = own_postgres().url(DATABASE)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE monitoring LOGIN")
    # Who could not be a service is no obstacle.
    with psycopg.connect(url, user="monitoring"):
        first, second = (epoch_of(new_epoch(url)) for _ in range(2))
    assert first < second
    with psycopg.connect(url) as connection:
        connection.execute("SET ROLE appointments_service")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DELETE FROM epochs")
