"""The command: exit codes, output, standbys, rights, and what it costs."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from psycopg.conninfo import make_conninfo

from bench.stack import peak_mib
from local.stack import DATABASE, base_environment
from service.domain import DIGEST_VERSION
from tests.api import Organization
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.databases import temporary_data_directory
from tests.load import Load
from tests.observing import until
from tests.operations.place import Place
from tests.reads.replicas import Standby
from tests.verify.verified import check_sound, verified

COMMAND = (sys.executable, "-m", "service", "verify")
CHECKING = "application_name = 'appointments verify'"
# MiB that a large database may need more than a small one.
ROOM = 10


def run(url: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = base_environment() | ({} if url is None else {"DATABASE_URL": url})
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        COMMAND,
        env=base_environment() | {"DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def waits(place: Place) -> bool:
    """Return whether a check waits for a lock."""
    return place.count("pg_stat_activity", f"{CHECKING} AND wait_event_type = 'Lock'") == 1


def test_a_sound_database_is_0(sound: str) -> None:
    done = run(sound)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "sound: organizations 2, appointments 12, changes 23;"
        " digests computed again 8, not computable 1\n"
    )


def test_findings_are_1_and_a_line_each(copy: str) -> None:
    with psycopg.connect(copy) as connection:
        connection.execute("UPDATE organizations SET revision = 20 WHERE organization_id = 'o'")
        connection.execute(
            "UPDATE appointments SET version = 9, title = 'secret' WHERE version = 3"
        )
    done = run(copy)
    assert (done.returncode, done.stderr) == (1, "")
    latest, *rows, counts, summary = done.stdout.splitlines()
    assert latest.startswith('latest-revision: organization "o", revision 16: expected 16,')
    assert ", stored 20, " in latest
    assert (
        'row: organization "o", appointment "a", revision 3: expected row 0 with version 3,'
        " another title, stored version 9, another title"
    ) in rows
    assert counts == f"found: 1 latest-revision, {len(rows)} row"
    assert summary.startswith("unsound: organizations 2, appointments 12, changes 23;")
    assert "secret" not in done.stdout


def test_only_so_many_are_printed(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(copy) as connection:
        connection.execute("UPDATE appointments SET version = version + 1 WHERE ordinal = 0")
    lines = run(copy, "--limit", "3").stdout.splitlines()
    assert [line.startswith("row: ") for line in lines] == [True] * 3 + [False] * 3
    assert lines[3:5] == ["... and 9 more", "found: 12 row"]
    found = verified(copy, capsys, "--limit", "0")
    assert (found.code, found.findings, found.result["counts"]) == (1, [], {"row": 12})


def test_one_organization_only(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(copy) as connection:
        connection.execute("UPDATE organizations SET revision = 20 WHERE organization_id = 'o'")
    found = verified(copy, capsys, "--organization", "p")
    assert (found.code, found.result["organizations"], found.result["changes"]) == (0, 1, 7)
    found = verified(copy, capsys, "--organization", "o")
    assert (found.code, found.result["changes"]) == (1, 16)
    done = run(copy, "--organization", "O")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nothing is stored of the organization 'O'\n"


def test_what_cannot_be_checked_is_2(sound: str, own_postgres: OwnPostgres) -> None:
    done = run(None)
    assert (done.returncode, done.stderr) == (2, "error: DATABASE_URL: Field required\n")
    done = run("postgresql://nobody@127.0.0.1:1/nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the database of DATABASE_URL cannot be read: ")
    assert done.stderr.count("\n") == 1
    done = run(own_postgres(migrated=False).url(DATABASE))
    assert done.returncode == 2
    assert "run 'make migrate' first" in done.stderr
    done = run(sound, "--limit", "-1")
    assert done.returncode == 2
    assert "--limit" in done.stderr


@pytest.mark.parametrize("lacking", ["max", "min"])
def test_an_older_schema_is_2(copy: str, lacking: str) -> None:
    with psycopg.connect(copy) as connection:
        connection.execute(
            f"DELETE FROM schema_migrations WHERE version = (SELECT {lacking}(version) FROM"
            " schema_migrations)".encode()
        )
    done = run(copy)
    assert done.returncode == 2
    assert "run 'make migrate' first" in done.stderr


@contextmanager
def login(url: str, granted: str) -> Iterator[str]:
    """Yield the URL of the database for a user of its own with a role."""
    user = f"reader_{os.getpid()}"
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute(f"CREATE ROLE {user} LOGIN IN ROLE {granted}".encode())
        try:
            yield make_conninfo(url, user=user)
        finally:
            connection.execute(f"DROP ROLE {user}".encode())


@pytest.mark.parametrize("granted", ["appointments_service", "pg_read_all_data"])
def test_a_login_that_may_read_is_enough(
    copy: str, granted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with login(copy, granted) as url:
        assert check_sound(url, capsys)["changes"] == 23


def test_a_login_that_may_not_read_a_table_is_2(copy: str) -> None:
    with psycopg.connect(copy) as connection:
        connection.execute("REVOKE SELECT ON unchanged_writes FROM appointments_service")
    with login(copy, "appointments_service") as url:
        done = run(url)
    user = psycopg.conninfo.conninfo_to_dict(url)["user"]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f'error: the user "{user}" may not read unchanged_writes: an administrator must'
        f' GRANT pg_read_all_data TO "{user}"\n'
    )


def test_rows_that_a_policy_hides_are_2(copy: str) -> None:
    """Without the changes of "o" and what they led to, the rest would be sound."""
    with psycopg.connect(copy) as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name = 'organization_id'"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY".encode())
            connection.execute(
                f"CREATE POLICY hide ON {table} USING (organization_id <> 'o')".encode()
            )
    with login(copy, "pg_read_all_data") as url:
        done = run(url)
    user = psycopg.conninfo.conninfo_to_dict(url)["user"]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: policies may hide rows of organizations, appointments,")
    assert done.stderr.endswith(f'administrator must ALTER ROLE "{user}" BYPASSRLS\n')


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_nothing_that_is_stored_controls_the_terminal(copy: str, arguments: tuple[str]) -> None:
    odd = "\x1b]0;title\x07\x9b2J\x7f\u202e\r\n\u00fc\U000e0001"
    with psycopg.connect(copy) as connection:
        connection.execute(
            "UPDATE appointments SET appointment_id = %s, title = %s"
            " WHERE organization_id = 'o' AND appointment_id = 'a'",
            (odd, odd),
        )
    done = run(copy, *arguments)
    assert done.returncode == 1
    assert done.stdout.replace("\n", "").isprintable()
    shown = r"\u001b]0;title\u0007\u009b2J\u007f\u202e\r\nü\udb40\udc01"
    assert f'"{shown}"' in done.stdout


def test_presets_of_the_user_do_not_matter(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(copy, autocommit=True) as connection:
        for preset in (
            "statement_timeout = '1ms'",
            "search_path = 'pg_catalog'",
            "default_transaction_isolation = 'read committed'",
            "enable_seqscan = off",
            "timezone = 'Asia/Kathmandu'",
            "datestyle = 'German'",
        ):
            name = psycopg.conninfo.conninfo_to_dict(copy)["dbname"]
            connection.execute(f"ALTER DATABASE {name} SET {preset}".encode())
    check_sound(make_conninfo(copy, options="-c statement_timeout=10s"), capsys)


def test_progress_is_shown_on_a_terminal(sound: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        COMMAND,
        env=base_environment() | {"DATABASE_URL": sound},
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # the end, on Linux
        finally:
            os.close(ours)
    assert process.returncode == 0
    lines = shown.decode().split("\r\x1b[2K")
    assert lines[1] == "  0% revisions from organization '' on"
    assert lines[-2].endswith("% positions of consumers from organization '' on")
    assert lines[-1] == ""


@pytest.fixture
def standby(own_postgres: OwnPostgres, start_service: StartProgram) -> Iterator[Standby]:
    """A standby that has replayed one keyed write of the organization "o"."""
    primary = own_postgres()
    service = start_service(DATABASE_URL=primary.url(DATABASE))
    with ExitStack() as stack:
        directory = stack.enter_context(temporary_data_directory())
        server = primary.standby(directory / "standby", max_standby_streaming_delay="0")
        stack.callback(server.stop, immediate=True)
        server.start()
        standby = Standby(server, primary)
        channel = stack.enter_context(grpc.insecure_channel(service.address))
        org = Organization(AppointmentServiceStub(channel), "o")
        org.upsert("a", 0, 30, additional_resource_ids=["r"], idempotency_key="k")
        standby.catch_up()
        yield standby


def test_a_standby_can_be_checked(standby: Standby, capsys: pytest.CaptureFixture[str]) -> None:
    url = standby.server.url(DATABASE)
    assert standby.ask("SELECT pg_is_in_recovery()")
    found = check_sound(url, capsys)
    assert (found["changes"], found["digestsRecomputed"]) == (1, 1)
    with psycopg.connect(standby.primary.url(DATABASE)) as connection:
        connection.execute("UPDATE organizations SET revision = 2")
    standby.catch_up()
    assert verified(url, capsys).findings == [("latest-revision", None, 1)]


def test_a_check_that_the_standby_ends_is_2(standby: Standby) -> None:
    with start(standby.server.url(DATABASE)) as process:
        with standby.locked(conflict=True):
            standby.wait_for_a_waiting_read()
        output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert "conflict with recovery" in errors
    assert "max_standby_streaming_delay" in errors


def test_a_check_that_is_interrupted_is_2(place: Place) -> None:
    with psycopg.connect(place.url) as locker:
        locker.execute("LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE")
        with start(place.url) as process:
            until(lambda: waits(place))
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate()
    assert (process.returncode, output, errors) == (2, "", "error: interrupted\n")
    until(lambda: place.count("pg_stat_activity", CHECKING) == 0)


def test_it_is_right_while_the_service_writes(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with Load(place.service.address, "o") as load, Load(place.service.address, "p") as other:
        until(lambda: len(load.accepted) > 10)
        sizes = [check_sound(place.url, capsys)["changes"] for _ in range(10)]
        load.stop()
        other.stop()
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] <= len(load.accepted) + len(other.accepted)
    assert not load.failed
    assert not other.failed


def test_it_delays_no_write(place: Place) -> None:
    """A write is answered while the check is in the middle of its transaction."""
    org = place.organization("o").org
    org.upsert("a", 0, 30)
    with psycopg.connect(place.url) as locker:
        # The check reads this table last. No write needs it.
        locker.execute("LOCK TABLE webhook_deliveries IN ACCESS EXCLUSIVE MODE")
        with start(place.url) as process:
            until(lambda: waits(place))
            org.upsert("b", 40, 50)
            org.upsert("a", 10, 30)
            org.cancel("a")
            locker.rollback()
            output, _ = process.communicate()
    assert process.returncode == 0
    assert output.startswith("sound: organizations 1, appointments 1, changes 1;")


def test_memory_does_not_grow_with_the_database(create_database: CreateDatabase) -> None:
    few, many = create_database(), create_database()
    _fill(few, 1_000)
    _fill(many, 60_000)
    assert _peak_memory(many) < _peak_memory(few) + ROOM


def _fill(url: str, changes: int) -> None:
    """Store appointments, half of them moved once, as if the service had."""
    began = datetime(2030, 1, 1, tzinfo=UTC)
    with psycopg.connect(url) as connection:
        connection.execute(
            """
            INSERT INTO appointment_history (
                organization_id, revision, change, recorded_at, actor, idempotency_key,
                idempotency_digest, appointment_id, resource_id, start_time, end_time, title,
                attributes, created_at, updated_at, state, version, placed
            )
            SELECT
                'o', n, CASE WHEN mod(n, 3) = 0 THEN 'UPDATED' ELSE 'CREATED' END,
                %(began)s, '', 'key ' || n, %(version)s || sha256(n::text::bytea),
                'appointment ' || n - (mod(n, 3) = 0)::int, 'r',
                %(began)s + n * %(hour)s, %(began)s + n * %(hour)s + %(hour)s, repeat('x', 100),
                '{}', %(began)s, %(began)s, 'ACTIVE', 1 + (mod(n, 3) = 0)::int, true
            FROM generate_series(1, %(changes)s) AS n
            """,
            {
                "changes": changes,
                "began": began,
                "hour": timedelta(hours=1),
                "version": DIGEST_VERSION,
            },
        )
        connection.execute(
            """
            INSERT INTO appointments (
                organization_id, appointment_id, resource_id, start_time, end_time, title,
                attributes, created_at, updated_at, updated_at_given, state, version, revision
            )
            SELECT DISTINCT ON (appointment_id)
                organization_id, appointment_id, resource_id, start_time, end_time, title,
                attributes, created_at, updated_at, false, state, version, revision
            FROM appointment_history
            ORDER BY appointment_id, revision DESC
            """
        )
        connection.execute("INSERT INTO organizations VALUES ('o', %s, %s)", (changes, began))


def _peak_memory(url: str) -> float:
    """Check a database, and return the peak resident memory of the process in MiB."""
    with start(url) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_mib(process.pid))
            time.sleep(0.01)
    assert process.returncode == 0
    assert peak > 0
    return peak
