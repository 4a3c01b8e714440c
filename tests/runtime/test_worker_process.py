"""`python -m service worker` as a process: how it starts, and how it ends."""

import time
from collections.abc import Callable

import grpc
import psycopg
import pytest

from local.programs import StartError
from local.stack import DATABASE
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.observing import held_lock, metric, until
from tests.operations.submissions import Submissions


def failed_start(start: Callable[[], object]) -> str:
    with pytest.raises(StartError) as caught:
        start()
    assert "exit code 1" in str(caught.value)
    return str(caught.value)


def test_without_migrations_it_says_what_to_do(
    own_postgres: OwnPostgres, start_worker: StartProgram
) -> None:
    url = own_postgres(migrated=False).url(DATABASE)
    assert "run 'make migrate' first" in failed_start(lambda: start_worker(DATABASE_URL=url))


def test_without_a_database_it_says_so(start_worker: StartProgram) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    words = failed_start(lambda: start_worker(DATABASE_URL=url))
    assert "the database of DATABASE_URL cannot be used" in words


def test_a_second_worker_on_the_same_metrics_port_says_so(start_worker: StartProgram) -> None:
    port = str(start_worker().metrics_port)
    words = failed_start(lambda: start_worker(WORKER_METRICS_PORT=port))
    assert f"cannot listen on 127.0.0.1:{port}" in words


def test_without_a_metrics_port_any_number_run(start_worker: StartProgram) -> None:
    workers = [start_worker(WORKER_METRICS_PORT="") for _ in range(2)]
    assert [worker.metrics_port for worker in workers] == [0, 0]
    assert [worker.stop() for worker in workers] == [0, 0]


def test_stopped_in_the_middle_of_work_it_gives_its_leases_back(
    create_database: CreateDatabase, start_service: StartProgram, start_worker: StartProgram
) -> None:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    with (
        grpc.insecure_channel(service.address) as channel,
        psycopg.connect(url, autocommit=True) as sql,
        held_lock(url, "locked"),
    ):

        def count(table: str) -> int:
            row = sql.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
            assert row is not None
            number: int = row[0]
            return number

        Submissions(channel, "locked").upsert("a", 0, 1)
        last = [Submissions(channel, "large").upsert(str(n), n, n + 1) for n in range(20)][-1]
        sql.execute(
            "INSERT INTO queued_operations (organization_id, operation_id, accepted_at, write)"
            " SELECT 'large', gen_random_uuid(), now(), write FROM queued_operations,"
            " generate_series(1, 2000) WHERE organization_id = 'large'"
        )
        worker = start_worker(DATABASE_URL=url, OPERATION_LEASE="3600")
        until(lambda: metric(worker, "appointments_applied_operations_sum") > 2000)
        until(lambda: count("pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1)
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in "\n".join(worker.log_lines())
        assert count("queued_operations WHERE organization_id = 'large'") > 0, "too little to do"
        assert count("operation_leases WHERE leased_until > clock_timestamp() + '1s'") == 0
        assert count("operation_leases WHERE attempts > 0") == 0
        before = count("queued_operations")
        start_worker(DATABASE_URL=url)
        until(lambda: count("queued_operations") < before)
        assert Submissions(channel, "large").wait(last).done


def test_stopped_while_the_database_is_away_it_ends_all_the_same(
    own_postgres: OwnPostgres, start_worker: StartProgram
) -> None:
    postgres = own_postgres()
    worker = start_worker(DATABASE_URL=postgres.url(DATABASE))
    postgres.stop(immediate=True)
    worker.wait_for_event(lambda event: event["event"] == "operations not applied")
    started = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - started < 8
    assert "Traceback" not in "\n".join(worker.log_lines())
