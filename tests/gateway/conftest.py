"""A gateway in this process, in front of a service whose responses the tests decide."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from yarl import URL

from gateway import app
from gateway.settings import Settings
from tests.gateway.fake_service import FakeService, fake_service

START, END = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"
WRITE = {"id": "a", "start": START, "end": END}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, read completely."""

    status: int
    headers: Any
    body: bytes
    json: Any


@dataclass(slots=True)
class Gateway:
    """A running gateway, and a client of it that sends URLs as they are written."""

    listening: app.Listening
    client: ClientSession
    service: FakeService
    answers: list[ClientResponse] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listening.port}"

    async def send(self, method: str, target: str, **arguments: Any) -> Answer:
        url = URL(self.url + target, encoded=True)
        async with self.client.request(method, url, **arguments) as response:
            body = await response.read()
            is_json = response.content_type.endswith("json") and bool(body)
            value = await response.json(content_type=None) if is_json else None
            return Answer(response.status, response.headers, body, value)

    async def upsert(self, **arguments: Any) -> Answer:
        return await self.send("POST", "/api/appointments", json=WRITE, **arguments)


@asynccontextmanager
async def running_gateway(service: FakeService, **settings: Any) -> AsyncIterator[Gateway]:
    """Run a gateway with these settings, on free ports."""
    given: dict[str, Any] = {
        "gateway_host": "127.0.0.1",
        "gateway_port": 0,
        "gateway_metrics_port": 0,
        "service_address": f"127.0.0.1:{service.port}",
        **settings,
    }
    async with app.serving(Settings(**given)) as listening, ClientSession() as client:
        yield Gateway(listening, client, service)


@pytest.fixture(scope="session")
async def running_service() -> AsyncIterator[FakeService]:
    async with fake_service() as service:
        yield service


@pytest.fixture
def fake(running_service: FakeService) -> FakeService:
    running_service.reset()
    return running_service


@pytest.fixture(scope="session")
async def _shared_gateway(running_service: FakeService) -> AsyncIterator[Gateway]:
    async with running_gateway(running_service) as gateway:
        yield gateway


@pytest.fixture
def rest(_shared_gateway: Gateway, fake: FakeService) -> Gateway:
    """A gateway with the default settings, in front of `fake`."""
    return _shared_gateway
