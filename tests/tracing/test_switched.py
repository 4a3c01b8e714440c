"""Traces cost nothing while they are off, follow OpenTelemetry's variables, and delay no call."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from local.programs import ROOT, Program
from runtime.tracing import tracing
from tests.conftest import StartProgram
from tests.observing import until
from tests.operations.place import Place, queued_write
from tests.receiver import Receiver
from tests.rest_client import Client
from tests.tracing.collector import Collector
from tests.tracing.conftest import Trace
from tests.webhooks.hooked import QUICK

# What a program does that starts without traces.
START = """
import asyncio, sys
import gateway.app, service.server, service.worker
from runtime.tracing import tracing

async def main():
    async with tracing("test") as tracer:
        print(tracer, [name for name in sys.modules if name.startswith("opentelemetry")])

asyncio.run(main())
"""

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_nothing_is_imported_while_traces_are_off() -> None:
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "None []"


@pytest.mark.parametrize(
    ("variable", "value", "on"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "", False),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1", True),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces", True),
    ],
)
async def test_an_endpoint_switches_traces_on(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, on: bool
) -> None:
    monkeypatch.setenv(variable, value)
    async with tracing("test") as tracer:
        assert (tracer is not None) is on


def test_the_variables_of_opentelemetry_are_followed(
    collector: Collector,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    settings = {
        **collector.settings,
        "OTEL_SERVICE_NAME": "booking",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hidden",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **settings)
    rest = Client(gateway, organization)
    rest.upsert("one")
    rest.upsert("two", Traceparent="no trace", start="2030-02-01 10:00", end="2030-02-01 11:00")
    rest.call("GET", "/appointments/one", Traceparent=trace.header())
    spans = collector.of(trace.id, 4)
    assert {span.service for span in spans} == {"booking"}
    assert {span.trace for span in collector.spans} == {trace.id}
    assert collector.headers[0]["api-key"] == "hidden"
    assert b"deployment.environment.name" in collector.bodies[0]


def test_a_caller_that_does_not_sample_is_followed(
    collector: Collector,
    place: Place,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    service = start_service(DATABASE_URL=place.url, **collector.settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **collector.settings)
    rest = Client(gateway, organization)
    rest.upsert("one", Traceparent=Trace().header(sampled=False))
    rest.upsert("two", Traceparent=trace.header(), start="2030-02-01 10:00", end="2030-02-01 11:00")
    collector.of(trace.id, 5)
    assert {span.trace for span in collector.spans} == {trace.id}
    stored = place.sql.execute(
        "SELECT trace_context FROM appointment_history ORDER BY revision"
    ).fetchall()
    call = collector.one(trace.id, "apply writes").parent
    assert stored == [(None,), (f"00-{trace.id}-{call}-01",)]


def test_what_waits_is_sent_at_the_end(
    collector: Collector,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    settings = {**collector.settings, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **settings)
    Client(gateway, organization).upsert(Traceparent=trace.header())
    assert collector.spans == []
    assert gateway.stop() == 0
    assert service.stop() == 0
    collector.of(trace.id, 5)


@pytest.mark.parametrize("away", ["silent", "refused"])
def test_a_collector_that_is_away_delays_nothing(
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    silent: str,
    away: str,
) -> None:
    """More spans than fit into the queue are made, and none of them is taken."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": silent if away == "silent" else "http://127.0.0.1:1",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
    }
    service = start_service(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **settings)
    rest = Client(gateway, organization)
    rest.upsert("a")
    for _ in range(50):
        assert rest.call("GET", "/appointments/a").status == 200
    began = time.monotonic()
    assert (gateway.stop(60), service.stop(60)) == (0, 0)
    # The exporter's own limits are 10 seconds for a request and 30 at the end.
    assert time.monotonic() - began < 30


def exposition(program: Program, accept: str) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{program.metrics_port}/metrics", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_latencies_have_the_trace_as_exemplar(
    collector: Collector,
    start_service: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    service = start_service(**collector.settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **collector.settings)
    rest = Client(gateway, organization)
    rest.upsert("a", Traceparent=trace.header())
    rest.call("GET", "/appointments/a", Traceparent=Trace().header(sampled=False))
    for program, name in ((service, "appointments"), (gateway, "gateway")):
        lines = exposition(program, OPENMETRICS).splitlines()
        assert lines[-1] == "# EOF"
        shown = [line for line in lines if f'trace_id="{trace.id}"' in line]
        assert shown
        assert all(line.startswith(f"{name}_request_seconds_bucket{{") for line in shown)
        assert [line for line in lines if " # {" in line] == shown
        plain = exposition(program, "text/plain")
        assert f"{name}_request_seconds_bucket{{" in plain
        assert trace.id not in plain


MIGRATION = next((ROOT / "migrations").glob("*_trace_contexts.sql"))


def down(migration: Path) -> str:
    return migration.read_text("utf-8").partition("-- migrate:down")[2]


def test_the_previous_schema_is_enough_for_what_runs(
    collector: Collector,
    place: Place,
    start_service: StartProgram,
    start_worker: StartProgram,
    start_gateway: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    """The migration is taken back while the programs run. Traces end at the database then."""
    settings = {
        **collector.settings,
        **QUICK,
        "DATABASE_URL": place.url,
    }
    service = start_service(**settings)
    start_worker(**settings)
    gateway = start_gateway(SERVICE_ADDRESS=service.address, **settings)
    rest = Client(gateway, organization)
    with Receiver() as receiver:
        body = {"organizationId": organization, "url": receiver.url("/hook")}
        hook = rest.send(
            "POST", "/api/webhooks", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert hook.status == 201
        for id in ("before", "queued before"):
            rest.upsert(id, Traceparent=Trace().header(), resourceId=id, Prefer="respond-async")
        until(lambda: len(receiver.requests) == 2)
        with psycopg.connect(place.url) as connection:
            connection.execute(down(MIGRATION).encode())
        accepted = rest.upsert(
            "queued", Traceparent=trace.header(), resourceId="queued", Prefer="respond-async"
        )
        assert accepted.status == 202
        until(lambda: len(receiver.requests) == 3)
        assert rest.upsert("now", Traceparent=trace.header(), resourceId="now").status == 201
        until(lambda: len(receiver.requests) == 4)
    traced = ["traceparent" in request.headers for request in receiver.requests]
    assert traced == [True, True, False, False]
    assert collector.one(trace.id, "queue operations")
    assert collector.one(trace.id, "apply writes")


def test_the_previous_functions_ignore_the_trace_of_a_queued_write(place: Place) -> None:
    place.queue("clinic", queued_write("a", 1, trace=Trace().header()))
    place.sql.execute(down(MIGRATION).encode())
    place.sql.execute(
        "SELECT apply_operations('clinic', json_agg(json_build_object('operation_id', operation_id,"
        " 'accepted_at', accepted_at, 'write', write))) FROM queued_operations"
    )
    [(outcome,)] = place.sql.execute("SELECT outcome FROM operations").fetchall()
    assert outcome == "CREATED"


def test_the_previous_programs_work_on_this_schema(place: Place) -> None:
    """The worker's statement, and a write without a trace."""
    place.queue("clinic", queued_write("a", 1), queued_write("b", 2, trace=Trace().header()))
    place.sql.execute("SELECT lease_operations('', 10, interval '1 minute')")
    [applied] = place.sql.execute(
        "SELECT organization_id, status, applied, delay IS NULL FROM apply_queued_operations("
        """'[{"organization_id":"clinic","fence":1,"only_one":false}]', 10, interval '1 minute')"""
    ).fetchall()
    assert applied == ("clinic", "DONE", 2, False)
    stored = place.sql.execute(
        "SELECT trace_context IS NULL FROM appointment_history ORDER BY revision"
    ).fetchall()
    assert stored == [(True,), (False,)]
