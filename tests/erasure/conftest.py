"""A REST client for the organization of a test."""

import pytest

from local.programs import Program
from tests.rest_client import Client


@pytest.fixture
def client(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)
