"""Fixtures of the tests by HTTP."""

import pytest

from local.programs import Program
from tests.conftest import StartProgram
from tests.rest_client import Client


@pytest.fixture
def client(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


@pytest.fixture
def own_service(start_service: StartProgram) -> Program:
    return start_service()


@pytest.fixture
def own_gateway(own_service: Program, start_gateway: StartProgram) -> Program:
    return start_gateway(SERVICE_ADDRESS=own_service.address)
