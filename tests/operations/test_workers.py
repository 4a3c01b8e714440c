"""Workers of each queue apply each operation once and in order, despite failures."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb

from local.programs import Program
from local.stack import DATABASE
from tests.conftest import CreateDatabase, OwnPostgres, StartProgram
from tests.observing import held_lock, metric, until
from tests.operations.consuming import Settings, check_order, submit_many, try_to_submit
from tests.operations.queues import Queue
from tests.operations.submissions import metadata_of, response_of
from tests.operations.submitter import Submitter, problem


def applied(worker: Program) -> float:
    return metric(worker, "appointments_applied_operations_sum")


def test_order_holds_with_several_workers_while_the_active_ones_are_killed(
    queue: Queue,
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    organizations = [f"{n}-{organization}" for n in range(6)]
    # All of its operations change one appointment: one that took effect twice would be seen.
    changing = f"changing-{organization}"
    workers = [start_consumer(**queue.impatient) for _ in range(3)]
    names: list[str] = []

    def submit(numbers: range) -> None:
        for org in organizations:
            names.extend(submit_many(client, org, numbers))
        names.extend(client.upsert(changing, "a", 0, n + 1, title=f"{n}") for n in numbers)

    for part in range(3):
        submit(range(part * 40, part * 40 + 20))
        with held_lock(settings["DATABASE_URL"], organizations[0]) as lock:
            submit(range(part * 40 + 20, part * 40 + 40))
            lock.wait_for(1)
            if part < 2:  # the one that has the most of it in hand
                active = max(workers, key=applied)
                workers.remove(active)
                active.kill()
    client.all_ended(names)
    for org in organizations:
        check_order(client, org, 120)
    changes = client.organization(changing).changes()
    assert [entry.appointment.title for entry in changes] == [f"{n}" for n in range(120)]
    client.organization(changing).check_history()


def test_accepted_operations_survive_a_kill_of_service_and_worker(
    settings: Settings,
    queue: Queue,
    queue_service: Program,
    client: Submitter,
    start_service: StartProgram,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    organizations = [f"{n}-{organization}" for n in range(5)]
    worker = start_consumer()
    names: list[str] = []
    for number in range(40):
        for org in organizations:
            names += submit_many(client, org, range(number, number + 1))
        if number == 20:
            worker.kill()
    queue_service.kill()
    with Submitter(start_service(**settings).address) as again:
        assert not again.get(names[-1]).done
        start_consumer(**queue.impatient)
        again.all_ended(names)
        for org in organizations:
            check_order(again, org, 40)


@pytest.mark.parametrize("immediate", [True, False], ids=["crash", "restart"])
def test_queued_operations_survive_an_outage_of_the_database(
    own_postgres: OwnPostgres,
    queue: Queue,
    start_service: StartProgram,
    start_worker: StartProgram,
    organization: str,
    immediate: bool,
) -> None:
    postgres = own_postgres()
    settings = {**queue.settings, "DATABASE_URL": postgres.url(DATABASE)}
    service = start_service(**settings)
    workers = [start_worker(**settings) for _ in range(2)]
    with Submitter(service.address) as client:
        names = submit_many(client, organization, range(300))
        postgres.stop(immediate=immediate)
        for worker in workers:
            worker.wait_for_event(lambda event: event["event"].startswith("operations not applied"))
        postgres.start()
        started = time.monotonic()
        until(lambda: try_to_submit(client, organization, "300", 300) is not None)
        client.all_ended(names)
        assert time.monotonic() - started < 10, "leases are given back, not waited for"
        until(lambda: len(client.organization(organization).changes()) == 301)
        check_order(client, organization, 301)
    assert [worker.stop() for worker in workers] == [0, 0]


def test_a_worker_that_was_suspended_for_long_does_no_harm(
    queue: Queue,
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    stalled = start_consumer(**queue.impatient)
    names = []
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        names += submit_many(client, organization, range(1))
        lock.wait_for(1)
        # These the worker has been given, or will be, before it goes on.
        names += submit_many(client, organization, range(1, 40))
        until(lambda: queue.untaken(settings) <= 40 - 16)
        stalled.process.send_signal(signal.SIGSTOP)
    try:
        other = start_consumer(**queue.impatient)
        client.all_ended(names)
        names = submit_many(client, organization, range(40, 60))
        client.all_ended(names)
    finally:
        stalled.process.send_signal(signal.SIGCONT)
    queue.wait_until_ready_again(stalled)
    other.kill()
    client.all_ended(submit_many(client, organization, range(60, 80)))
    check_order(client, organization, 80)
    until(lambda: queue.untaken(settings) == 0)


def test_a_worker_that_is_stopped_finishes_its_calls(
    queue: Queue,
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    worker = start_consumer()
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        [name] = submit_many(client, organization, range(1))
        lock.wait_for(1)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for_event(lambda event: event["event"] == "stopping")
    assert worker.stop(within=10) == 0
    assert client.get(name).done
    assert queue.untaken(settings) == 0


def test_a_worker_that_is_stopped_returns_what_it_cannot_finish(
    queue: Queue,
    settings: Settings,
    client: Submitter,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    worker = start_consumer()
    with held_lock(settings["DATABASE_URL"], organization) as lock:
        names = submit_many(client, organization, range(30))
        lock.wait_for(1)
        began = time.monotonic()
        assert worker.stop(within=20) == 0
        assert time.monotonic() - began < 10
        until(lambda: queue.untaken(settings) > 0)
    start_consumer()
    client.all_ended(names)
    check_order(client, organization, 30)


def test_an_operation_that_the_database_refuses_fails_alone(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    names = [
        client.upsert(organization, f"{n}", n, n + 1, title="poison" if n % 3 == 1 else "")
        for n in range(12)
    ]
    start_consumer()
    for number, name in enumerate(names):
        ended = client.ended(name)
        if number % 3 == 1:
            refused = problem(ended)
            assert refused.reason == "OPERATION_FAILED"
            assert "poisoned" in refused.message
        else:
            assert metadata_of(ended).outcome == pb.CREATED
    client.organization(organization).check_history()


def test_a_missing_permission_fails_no_operation(
    create_database: CreateDatabase,
    queue: Queue,
    start_service: StartProgram,
    start_worker: StartProgram,
    organization: str,
) -> None:
    """As during a deployment: the operation is not the cause."""
    url = create_database()
    settings = {**queue.settings, "DATABASE_URL": url}
    with (
        psycopg.connect(url, autocommit=True) as sql,
        Submitter(start_service(**settings).address) as client,
    ):
        # The worker's functions run with the rights of the owner, which are now limited.
        sql.execute("ALTER FUNCTION apply_writes OWNER TO appointments_service")
        names = submit_many(client, organization, range(3))
        worker = start_worker(**{**settings, **queue.impatient})
        worker.wait_for_event(lambda event: "permission denied" in str(event))
        assert not any(client.get(name).done for name in names)
        sql.execute("ALTER FUNCTION apply_writes OWNER TO CURRENT_USER")
        client.all_ended(names)
        check_order(client, organization, 3)


def test_synchronous_and_asynchronous_writes_keep_their_guarantees_together(
    client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    for _ in range(2):
        start_consumer()
    organizations = [client.of(f"{n}-{organization}") for n in range(3)]

    def write(writer: int) -> list[tuple[int, str]]:
        rng = random.Random(writer)
        accepted: list[tuple[int, str]] = []
        for number in range(60):
            index = rng.randrange(len(organizations))
            org = organizations[index]
            id, start = str(rng.randrange(30)), rng.randrange(200)
            options = {"idempotency_key": f"{writer}-{number}"} if rng.random() < 0.5 else {}
            try:
                match rng.randrange(5):
                    case 0:
                        org.org.cancel(id)
                    case 1:
                        accepted.append((index, org.cancel(id).name))
                    case 2:
                        org.org.upsert(id, start, start + 5, **options)
                    case _:
                        for _ in range(2 if options else 1):
                            name = org.upsert(id, start, start + 5, **options).name
                            accepted.append((index, name))
            except grpc.RpcError as error:
                assert error.code() in (
                    grpc.StatusCode.ALREADY_EXISTS,
                    grpc.StatusCode.NOT_FOUND,
                )
        return accepted

    with ThreadPoolExecutor(16) as pool:
        accepted = [pair for pairs in pool.map(write, range(16)) for pair in pairs]
    ended = [(index, client.ended(name, within=60)) for index, name in accepted]
    histories = [{entry.revision: entry for entry in org.org.changes()} for org in organizations]
    for index, operation in ended:
        if operation.WhichOneof("result") == "response":
            stored = response_of(operation)
            entry = histories[index][stored.revision]
            assert stored == entry.appointment
            outcome = pb.Outcome.Name(metadata_of(operation).outcome)
            assert outcome in (pb.HistoryEntry.Change.Name(entry.change), "UNCHANGED")
        else:
            assert operation.error.code in (
                grpc.StatusCode.ALREADY_EXISTS.value[0],
                grpc.StatusCode.NOT_FOUND.value[0],
            )
    for org in organizations:
        org.org.check_history()
