"""Operations that are queued in RabbitMQ, with and without failures of the broker."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import grpc
import psutil
import pytest
from aio_pika.abc import AbstractChannel
from appointments.v1 import appointment_pb2 as pb

from local.programs import Program
from local.rabbitmq import RabbitMQ
from local.stack import DATABASE
from service.operations.operation import parent_name
from service.operations.rabbitmq.messages import PARTITIONS
from tests.conftest import OwnPostgres, StartProgram
from tests.observing import until
from tests.operations.consuming import (
    Settings,
    check_order,
    on_channel,
    submit_many,
    try_to_submit,
    wait_until_consuming,
)
from tests.operations.queues import Queue
from tests.operations.submitter import Submitter
from tests.rest_client import Client


@pytest.fixture
def queue(queue_in_rabbitmq: Queue) -> Queue:
    """Of RabbitMQ alone."""
    return queue_in_rabbitmq


# Seconds after which a quorum queue is known to the broker that restarts after a kill.
QUEUES_KNOWN_AFTER = 3.5


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Suspend a process while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_id_that_was_never_issued_is_not_found(client: Submitter, organization: str) -> None:
    def name(at: datetime, version: int = 7) -> str:
        milliseconds = int(at.timestamp() * 1000)
        id = uuid.UUID(int=milliseconds << 80 | version << 76 | 0b10 << 62)
        return f"{parent_name(organization)}/operations/{id}"

    now = datetime.now(UTC)
    for unknown in (
        name(now + timedelta(hours=1)),
        name(now - timedelta(days=8)),
        name(now, version=4),
        f"{parent_name(organization)}/operations/1",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            client.get(unknown)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    # Of another machine, whose clock is a little ahead.
    assert not client.get(name(now + timedelta(seconds=10))).done
    assert not client.get(name(now)).done


def test_operations_are_accepted_while_the_database_is_unavailable(
    own_postgres: OwnPostgres,
    start_service: StartProgram,
    start_gateway: StartProgram,
    start_worker: StartProgram,
    settings: Settings,
    organization: str,
) -> None:
    postgres = own_postgres()
    settings = {**settings, "DATABASE_URL": postgres.url(DATABASE)}
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    worker = start_worker(**settings)
    wait_until_consuming(worker)
    rest = Client(gateway, f"rest-{organization}")
    with Submitter(service.address) as client:
        client.all_ended([client.upsert(organization, "0", 0, 1)])
        postgres.stop(immediate=True)
        names = submit_many(client, organization, range(1, 50))
        accepted = rest.upsert("a", Prefer="respond-async")
        assert accepted.status == 202
        postgres.start()
        client.all_ended(names)
        until(lambda: rest.send("GET", accepted.headers["Location"]).json["done"])
        check_order(client, organization, 50)
        assert [item["id"] for item in rest.stored()] == ["a"]
    rest.close()


def test_an_unavailable_broker_is_reported_and_used_again_afterwards(
    rabbitmq: RabbitMQ,
    queue_service: Program,
    client: Submitter,
    start_gateway: StartProgram,
    start_consumer: StartProgram,
    organization: str,
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=queue_service.address)
    rest = Client(gateway, organization)
    worker = start_consumer()
    client.all_ended([client.upsert(organization, "0", 0, 1)])
    time.sleep(QUEUES_KNOWN_AFTER)
    rabbitmq.kill()
    try:
        refused = [client.refused(organization, f"r{n}", 100 + n, 101 + n) for n in range(5)]
        for each in refused:
            assert (each.code, each.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE")
            assert each.retry_after == 1
        began = time.monotonic()
        answer = rest.upsert("g", Prefer="respond-async")
        assert time.monotonic() - began < 3
        assert (answer.status, answer.json["code"]) == (503, "BROKER_UNAVAILABLE")
        assert answer.headers["Retry-After"] == "1"
        # Requests that need no broker succeed.
        assert client.organization(organization).upsert("1", 1, 2).outcome == pb.CREATED
    finally:
        rabbitmq.start()
    until(lambda: try_to_submit(client, organization, "2", 2) is not None, within=30)
    names = submit_many(client, organization, range(3, 10))
    client.all_ended(names)
    wait_until_consuming(worker, 2)
    ids = {entry.appointment.id for entry in client.organization(organization).changes()}
    certain = {f"r{n}" for n in range(5) if "nothing was accepted" in refused[n].message}
    assert len(certain) >= 4  # the first may have been under way
    assert not ids & certain
    assert {f"{n}" for n in range(10)} <= ids
    queue_service.wait_for_event(lambda event: event["event"] == "RabbitMQ available again")
    rest.close()


def test_a_broker_that_hangs_delays_no_caller_beyond_the_timeout(
    rabbitmq: RabbitMQ, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()
    client.all_ended([client.upsert(organization, "0", 0, 1)])
    with stopped(rabbitmq.pid):
        began = time.monotonic()
        refused = client.refused(organization, "1", 1, 2)
        assert (refused.reason, time.monotonic() - began < 3.5) == ("BROKER_UNAVAILABLE", True)
        assert "not known" in refused.message
        began = time.monotonic()
        assert "nothing was accepted" in client.refused(organization, "x", 5, 6).message
        assert time.monotonic() - began < 3.5
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 8
    until(lambda: try_to_submit(client, organization, "1", 1) is not None, within=30)
    start_consumer()
    client.all_ended([client.upsert(organization, "2", 2, 3)])
    check_order(client, organization, 3)


def test_a_broker_that_is_killed_loses_nothing_that_was_accepted(
    rabbitmq: RabbitMQ, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    organizations = [f"{n}-{organization}" for n in range(5)]
    names = [client.upsert(org, "0", 0, 1) for org in organizations]
    time.sleep(QUEUES_KNOWN_AFTER)
    for org in organizations:
        names += submit_many(client, org, range(1, 60))
    rabbitmq.kill()
    rabbitmq.start()
    for org in organizations:
        until(lambda org=org: try_to_submit(client, org, "60", 60) is not None)  # type: ignore[misc]
    start_consumer()
    client.all_ended(names)
    for org in organizations:
        client.all_ended(submit_many(client, org, range(61, 62)))
        check_order(client, org, 62)


def test_a_deleted_queue_is_declared_again(
    settings: Settings, client: Submitter, start_consumer: StartProgram, organization: str
) -> None:
    worker = start_consumer()

    async def delete(channel: AbstractChannel) -> None:
        for name in PARTITIONS:
            await channel.queue_delete(name)

    on_channel(settings["AMQP_URL"], delete)
    wait_until_consuming(worker, 2)
    client.all_ended(submit_many(client, organization, range(3)))


def test_queues_with_other_arguments_are_reported(
    settings: Settings,
    queue_service: Program,
    client: Submitter,
    start_worker: StartProgram,
    organization: str,
) -> None:
    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_queue(PARTITIONS[0], durable=True)

    on_channel(settings["AMQP_URL"], declare)
    refused = client.refused(organization, "a", 0, 1)
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert "nothing was accepted" in refused.message
    worker = start_worker(**settings)
    for program in (queue_service, worker):
        event = program.wait_for_event(lambda event: "PRECONDITION_FAILED" in str(event))
        assert PARTITIONS[0] in event["error"]
