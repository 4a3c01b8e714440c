"""The client with an organization of its own."""

from pathlib import Path

import pytest

from local.programs import Program
from tests.client.command import Client


@pytest.fixture
def client(service: Program, organization: str, tmp_path: Path) -> Client:
    return Client(address=service.address, organization=organization, directory=tmp_path)
