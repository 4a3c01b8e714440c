"""The service passes the same tests on a database in the form for Citus.

Without TEST_CITUS_URL that is PostgreSQL with the functions of migrations/citus.sql. The service
takes it for distributed, so it sends what it would send to a cluster. With TEST_CITUS_URL it is a
cluster: an empty database with the extension, as its owner, through the coordinator.
"""

import os
import subprocess
import sys

import pytest

from local.programs import ROOT

# Tests that share one database, with an organization of their own each.
SHARED = (
    "tests/writes/test_writes.py",
    "tests/writes/test_batches.py",
    "tests/writes/test_atomic_batches.py",
    "tests/writes/test_updates.py",
    "tests/writes/test_resources.py",
    "tests/writes/test_holds.py",
    "tests/writes/test_alternatives.py",
    "tests/reads/test_reads.py",
    "tests/webhooks/test_webhooks.py",
)
# Tests with databases of their own.
OWN = (
    "tests/operations/test_postgres_queue.py",
    "tests/operations/test_erased.py",
    "tests/webhooks/test_races.py",
    "tests/webhooks/test_encryption.py",
    "tests/writes/test_expiry.py",
)
# What is different there on purpose.
LEFT_OUT = (
    # It waits for a worker that leases the same.
    "operations/test_postgres_queue.py::test_concurrent_leasing_does_not_wait",
    # A worker has one organization for each connection, not 256.
    "operations/test_postgres_queue.py::test_large_organizations_do_not_delay_small_ones",
    # Statements are planned each time.
    "writes/test_atomic_batches.py::test_a_thousand_items_are_written_or_refused_within_two_seconds",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_tests_pass() -> None:
    on_cluster = "TEST_CITUS_URL" in os.environ
    suites = SHARED if on_cluster else SHARED + OWN
    arguments = ["-v", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal", *suites]
    for test in LEFT_OUT:
        arguments += ["--deselect", f"tests/{test}"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    if not on_cluster:
        environment["TEST_DISTRIBUTED"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "form for Citus" in done.stdout or on_cluster
    assert "LEFT OUT" not in done.stdout
