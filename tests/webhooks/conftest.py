"""A service whose webhooks may reach the receivers of the tests."""

from collections.abc import Iterator
from contextlib import ExitStack

import grpc
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.api import Organization
from tests.conftest import CreateDatabase, StartProgram, listening
from tests.receiver import LOOPBACK, Receiver
from tests.rest_client import Client
from tests.webhooks.hooked import QUICK, Hooked


@pytest.fixture(scope="module")
def url(create_database: CreateDatabase) -> str:
    """A database that no other worker uses."""
    return create_database()


@pytest.fixture(scope="module")
def programs(url: str, fork: StartProgram) -> Iterator[tuple[Program, Program]]:
    """A service that allows webhooks on loopback, and its gateway."""
    with ExitStack() as stack:
        settings = {
            "DATABASE_URL": url,
            "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK,
            "WEBHOOK_SECRET_OVERLAP": "3",
        }
        service = listening(stack, fork("service", settings))
        gateway = listening(stack, fork("gateway", {"SERVICE_ADDRESS": service.address}))
        yield service, gateway


@pytest.fixture
def start(start_worker: StartProgram, url: str) -> StartProgram:
    """Start a worker for that database with short delays."""
    return lambda **settings: start_worker(**{"DATABASE_URL": url, **QUICK, **settings})


@pytest.fixture
def hooked(programs: tuple[Program, Program], organization: str) -> Iterator[Hooked]:
    service, gateway = programs
    with Receiver() as receiver, grpc.insecure_channel(service.address) as channel:
        rest = Client(gateway, organization)
        yield Hooked(rest, Organization(AppointmentServiceStub(channel), organization), receiver)
        for each in rest.call("GET", "/webhooks").json["webhooks"]:
            rest.call("DELETE", f"/webhooks/{each['id']}")
