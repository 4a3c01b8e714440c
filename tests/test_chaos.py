"""Accepted operations are applied once and in order while every process is killed."""

import asyncio
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Sequence

import aiohttp
import grpc
import pytest
from aiohttp import web
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.longrunning import operations_pb2, operations_pb2_grpc

from local.programs import Program
from local.rabbitmq import RabbitMQ
from local.stack import DATABASE
from service.events.rabbitmq import routing_key
from service.operations.operation import parent_name
from service.verify.command import parse, verify
from tests.api import Organization
from tests.chaos import CALL_TIMEOUT, Hand, Running, Step, Writers, steps
from tests.conftest import OwnPostgres, StartProgram
from tests.events.consumer import Consumer
from tests.observing import until
from tests.receiver import Answer, Received, Receiver
from tests.rest_client import Client
from tests.webhooks.hooked import QUICK, Hooked

ORGANIZATIONS = 50
OPERATIONS = int(os.environ.get("CHAOS_OPERATIONS", "2000"))
# Organizations that also have a synchronous writer and a webhook, and the number of writes.
MIXED = 10
SYNCHRONOUS = 30


@pytest.mark.timeout(400)
@pytest.mark.parametrize("queue", ["postgres", "rabbitmq"])
async def test_whatever_is_killed_all_that_was_accepted_ends_once_and_in_order(
    queue: str,
    rabbitmq: RabbitMQ,
    own_postgres: OwnPostgres,
    start_service: StartProgram,
    start_gateway: StartProgram,
    start_worker: StartProgram,
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(2**32))
    sys.stdout.write(f"CHAOS_SEED={seed}\n")
    dice = random.Random(seed)
    hand = Hand(dice)
    virtual_host = f"test-{uuid.uuid4()}"
    postgres = own_postgres()
    settings = {
        "DATABASE_URL": postgres.url(DATABASE),
        "AMQP_URL": rabbitmq.add_virtual_host(virtual_host),
        "OPERATION_QUEUE": queue,
        "OPERATION_LEASE": "2",
        "STATEMENT_TIMEOUT": "2",
        "LOCK_TIMEOUT": "1",
        "EVENT_LEASE": "2",
        **QUICK,
    }
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    running = Running(
        postgres=postgres,
        broker=rabbitmq,
        starts={
            "service": lambda: start_service(**settings, GRPC_PORT=str(service.port)),
            "gateway": lambda: start_gateway(
                SERVICE_ADDRESS=service.address, GATEWAY_PORT=str(gateway.port)
            ),
            **{f"worker-{n}": lambda: start_worker(**settings) for n in range(3)},
        },
        programs={"service": service, "gateway": gateway},
    )
    for number in range(3):
        running.start(f"worker-{number}")
    organizations = [f"{number}-{uuid.uuid4()}" for number in range(ORGANIZATIONS)]
    wanted = steps("a", OPERATIONS // ORGANIZATIONS)
    synchronous = steps("s", SYNCHRONOUS)
    bindings = [routing_key(each, "*") for each in organizations]
    taken: dict[str, list[int]] = {f"/{number}": [] for number in range(MIXED)}
    answers = {path: failing_often(taken[path], dice) for path in taken}
    with (
        Consumer(rabbitmq, bindings, virtual_host=virtual_host) as consumer,
        Receiver(answers) as receiver,
    ):
        hook(service.address, gateway, receiver, dict(zip(taken, organizations, strict=False)))
        began = time.monotonic()
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT)
        ) as session:
            writers = Writers(
                service.address,
                gateway.url,
                session,
                dice,
                may_go_on=lambda count: count <= hand.limit * OPERATIONS,
            )
            async with asyncio.TaskGroup() as tasks:
                for each in organizations:
                    tasks.create_task(writers.submit_all(each, wanted))
                for each in organizations[:MIXED]:
                    tasks.create_task(writers.write_all(each, synchronous))
                tasks.create_task(hand.play(running, lambda: writers.count / OPERATIONS))
            await writers.close()
        accepted = time.monotonic() - began
        with grpc.insecure_channel(service.address) as channel:
            stub = AppointmentServiceStub(channel)
            operations = operations_pb2_grpc.OperationsStub(channel)
            for number, each in enumerate(organizations):
                check_ends(operations, each, writers.known[each, "a"], wanted)
                org = Organization(stub, each)
                entries = org.changes()
                check_effects(entries, wanted, writers.known[each, "a"])
                if number < MIXED:
                    check_effects(entries, synchronous, writers.known[each, "s"])
                    check_taken(taken[f"/{number}"], len(entries))
                org.check_history()
                until(lambda e=entries, o=each: consumer.latest.get(o, 0) >= len(e), within=60)  # type: ignore[misc]
                assert consumer.entries(each) == entries
        # Prints what it finds, or how much it has checked.
        assert verify(settings["DATABASE_URL"], parse([])) == 0
        repeated = len(consumer.messages) - sum(consumer.latest.values())
        sys.stdout.write(
            f"{writers.count} accepted in {accepted:.0f} s, {writers.retries} sent again,"
            f" all checked after {time.monotonic() - began:.0f} s, {repeated} messages repeated;"
            f" killed: {', '.join(hand.done)}\n"
        )


def failing_often(taken: list[int], dice: random.Random) -> Answer:
    """Accept and record two of three changes; fail otherwise."""

    async def answer(received: Received) -> web.Response:
        if dice.random() < 1 / 3:
            return web.Response(status=500)
        taken.append(received.revision)
        return web.Response()

    return answer


def hook(service: str, gateway: Program, receiver: Receiver, paths: dict[str, str]) -> None:
    """Register a webhook per organization, each with its own path."""
    with grpc.insecure_channel(service) as channel:
        for path, organization in paths.items():
            rest = Client(gateway, organization)
            org = Organization(AppointmentServiceStub(channel), organization)
            Hooked(rest, org, receiver).hook(path)
            rest.close()


def check_taken(taken: list[int], latest: int) -> None:
    """Assert that a webhook received every change in order, apart from repetitions."""
    until(lambda: latest in taken, within=60)
    assert list(dict.fromkeys(taken)) == list(range(1, latest + 1))


def check_ends(
    operations: operations_pb2_grpc.OperationsStub,
    organization: str,
    names: Sequence[str | None],
    wanted: Sequence[Step],
) -> None:
    """Assert that all accepted operations have finished with the right result."""
    accepted = {name: step for name, step in zip(names, wanted, strict=True) if name is not None}
    assert len(accepted) == len(names) - names.count(None)
    done: dict[str, operations_pb2.Operation] = {}
    give_up = time.monotonic() + 60
    while not done.keys() >= accepted.keys():
        assert time.monotonic() < give_up, f"{len(accepted.keys() - done.keys())} never ended"
        done = ended(operations, organization)
    for name, step in accepted.items():
        operation = done[name]
        assert operation.HasField("error") is step.refused, (step, operation)
        if step.refused:
            assert "the time range is taken" in operation.error.message, operation
        else:
            appointment = pb.Appointment()
            assert operation.response.Unpack(appointment)
            assert appointment.id == step.id
            assert (appointment.state == pb.Appointment.CANCELLED) is step.cancel


def ended(
    stub: operations_pb2_grpc.OperationsStub, organization: str
) -> dict[str, operations_pb2.Operation]:
    found: dict[str, operations_pb2.Operation] = {}
    request = operations_pb2.ListOperationsRequest(
        name=parent_name(organization), filter="done=true", page_size=1000
    )
    while True:
        page = stub.ListOperations(request, timeout=30, wait_for_ready=True)
        found |= {operation.name: operation for operation in page.operations}
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def check_effects(
    entries: Sequence[pb.HistoryEntry], wanted: Sequence[Step], known: Sequence[str | None]
) -> None:
    """Assert that a writer's steps took effect once each, in their order.

    A change of which it is not known whether it was accepted may have, once, at any time.
    """
    changed = {step.id for step in wanted if step.title}
    resources = {step.resource for step in wanted} - changed
    effects = [
        (entry.appointment.id, entry.change)
        for entry in entries
        if entry.appointment.resource_id in resources
    ]
    assert effects == [
        (step.id, pb.HistoryEntry.CANCELLED if step.cancel else pb.HistoryEntry.CREATED)
        for step in wanted
        if not step.refused and not step.title
    ]
    titles = [entry.appointment.title for entry in entries if entry.appointment.id in changed]
    assert len(titles) == len(set(titles)), titles
    certain = [step.title for step, name in zip(wanted, known, strict=True) if name is not None]
    certain = [title for title in certain if title]
    assert [title for title in titles if title in certain] == certain
