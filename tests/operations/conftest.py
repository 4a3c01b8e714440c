"""Services and workers with each queue, separate from those of other tests.

A test that uses the fixture `queue`, directly or not, is run with each queue. A module whose
tests are for one queue overrides that fixture.
"""

from collections.abc import Iterator

import psycopg
import pytest

from local.programs import Program
from local.rabbitmq import RabbitMQ
from tests.conftest import CreateDatabase, StartProgram
from tests.operations.consuming import Settings
from tests.operations.queues import QUEUES, Queue, delete_queues, postgres_queue, rabbitmq_queue
from tests.operations.submitter import Submitter


@pytest.fixture(scope="session")
def virtual_host(rabbitmq: RabbitMQ) -> str:
    """The URL of a virtual host for operations."""
    return rabbitmq.add_virtual_host("operations")


@pytest.fixture(scope="module", params=QUEUES)
def queue_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared_queue(request: pytest.FixtureRequest, queue_name: str) -> Queue:
    """For programs that run as long as a module's tests."""
    return _empty_queue(request, queue_name)


@pytest.fixture
def queue(request: pytest.FixtureRequest, queue_name: str) -> Queue:
    """An empty queue. The workers of earlier tests have ended."""
    return _empty_queue(request, queue_name)


@pytest.fixture
def queue_in_rabbitmq(request: pytest.FixtureRequest) -> Queue:
    """For modules that override `queue`."""
    return _empty_queue(request, "rabbitmq")


def _empty_queue(request: pytest.FixtureRequest, name: str) -> Queue:
    if name == "postgres":
        return postgres_queue()
    url: str = request.getfixturevalue("virtual_host")
    delete_queues(url)
    return rabbitmq_queue(url)


@pytest.fixture(scope="module")
def own_database(create_database: CreateDatabase) -> str:
    """A database that refuses the title "poison", and hangs on the title "slow"."""
    url = create_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            CREATE FUNCTION obstruct() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.title = 'poison' THEN RAISE 'poisoned'; END IF;
                PERFORM pg_sleep(60);
                RETURN NEW;
            END
            $$
            """
        )
        connection.execute(
            "CREATE TRIGGER obstruct BEFORE INSERT ON appointments FOR EACH ROW"
            " WHEN (NEW.title IN ('poison', 'slow')) EXECUTE FUNCTION obstruct()"
        )
    return url


@pytest.fixture
def settings(own_database: str, queue: Queue) -> Settings:
    """The settings of every program of a test."""
    return {"DATABASE_URL": own_database, **queue.settings}


@pytest.fixture
def queue_service(start_service: StartProgram, settings: Settings) -> Program:
    return start_service(**settings)


@pytest.fixture
def start_consumer(start_worker: StartProgram, settings: Settings, queue: Queue) -> StartProgram:
    """Start a worker, and wait until it takes operations."""

    def start(**env: str) -> Program:
        worker = start_worker(**{**settings, **env})
        queue.wait_until_ready(worker)
        return worker

    return start


@pytest.fixture
def client(queue_service: Program) -> Iterator[Submitter]:
    with Submitter(queue_service.address) as client:
        yield client
