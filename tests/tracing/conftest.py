"""Programs that send their spans to a collector, on a database of their own."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from local.programs import Program
from tests.conftest import CreateDatabase, StartProgram, listening
from tests.receiver import LOOPBACK
from tests.tracing.collector import Collector
from tests.webhooks.hooked import QUICK


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """All programs, and the collector of their spans."""

    collector: Collector
    url: str
    service: Program
    worker: Program
    gateway: Program


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace of a caller."""

    id: str = field(default_factory=lambda: secrets.token_hex(16))
    parent: str = field(default_factory=lambda: secrets.token_hex(8))

    def header(self, *, sampled: bool = True) -> str:
        return f"00-{self.id}-{self.parent}-0{sampled:d}"


@pytest.fixture
def trace() -> Trace:
    return Trace()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector for the programs of one test."""
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(create_database: CreateDatabase, fork: StartProgram) -> Iterator[Traced]:
    with ExitStack() as stack:
        collector = stack.enter_context(Collector())
        url = create_database()
        settings = {**collector.settings, "DATABASE_URL": url, "WEBHOOK_ALLOWED_NETWORKS": LOOPBACK}
        service = listening(stack, fork("service", settings))
        worker = listening(stack, fork("service", {**settings, **QUICK}, "worker"))
        gateway = listening(
            stack, fork("gateway", {**settings, "SERVICE_ADDRESS": service.address})
        )
        yield Traced(collector=collector, url=url, service=service, worker=worker, gateway=gateway)
