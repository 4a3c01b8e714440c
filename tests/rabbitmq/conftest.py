"""Services and workers whose operations are queued in RabbitMQ."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from local.programs import Program
from local.rabbitmq import RabbitMQ
from tests.conftest import CreateDatabase, StartProgram
from tests.rabbitmq.consuming import Settings, wait_until_consuming
from tests.submitter import Submitter


@pytest.fixture(scope="module")
def own_database(create_database: CreateDatabase) -> str:
    """Its rows refuse the title "poison", and take forever over "slow"."""
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
def settings(own_database: str, rabbitmq: RabbitMQ) -> Settings:
    """A virtual host for each test: no worker of another one consumes its queues."""
    return {
        "DATABASE_URL": own_database,
        "OPERATION_QUEUE": "rabbitmq",
        "AMQP_URL": rabbitmq.add_virtual_host(f"test-{uuid.uuid4()}"),
    }


@pytest.fixture
def queue_service(start_service: StartProgram, settings: Settings) -> Program:
    return start_service(**settings)


@pytest.fixture
def start_consumer(start_worker: StartProgram, settings: Settings) -> StartProgram:
    """Start a worker, and wait until it consumes."""

    def start(**env: str) -> Program:
        worker = start_worker(**{**settings, **env})
        wait_until_consuming(worker)
        return worker

    return start


@pytest.fixture
def client(queue_service: Program) -> Iterator[Submitter]:
    with Submitter(queue_service.address) as client:
        yield client
