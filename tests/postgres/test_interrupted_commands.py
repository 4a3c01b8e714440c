"""Commands that are interrupted while they wait."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import LiteralString

import psycopg
import pytest

from local.programs import ROOT
from local.stack import base_environment
from service.postgres.migration import LOCK_KEY
from tests.conftest import CreateDatabase
from tests.observing import until

# Other sessions that wait for a lock, or look for a free one again and again.
WAITING: LiteralString = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND (wait_event_type = 'Lock' OR query LIKE '%pg_try_advisory_lock%')
"""


@pytest.mark.parametrize(
    ("command", "lock", "says"),
    [
        (
            (str(ROOT / "migrations" / "migrate"),),
            f"SELECT pg_advisory_lock({LOCK_KEY})",
            "interrupted; the migrations that were complete are kept",
        ),
        (
            (sys.executable, "-m", "service", "purge", "o", "--yes-delete", "o"),
            "LOCK TABLE queued_operations, organizations",
            "the purge was interrupted, run it again",
        ),
    ],
    ids=["migrate", "purge"],
)
def test_an_interrupted_command_says_so_in_one_line(
    create_database: CreateDatabase, command: Sequence[str], lock: LiteralString, says: str
) -> None:
    url = create_database()
    with psycopg.connect(url) as other, psycopg.connect(url, autocommit=True) as observer:
        other.execute(lock)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**base_environment(), "DATABASE_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            until(lambda: observer.execute(WAITING).fetchone() == (1,))
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (1, "", f"error: {says}\n")


def test_an_interrupted_question_removes_nothing(create_database: CreateDatabase) -> None:
    terminal, input_ = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "purge", "o"],
        cwd=ROOT,
        env={**base_environment(), "DATABASE_URL": create_database()},
        stdin=input_,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(input_)
    with process:
        assert process.stdout is not None
        output = b""
        while b"Type its name again" not in output:
            output += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    os.close(terminal)
    assert (process.returncode, errors) == (1, b"error: interrupted; nothing was removed\n")
