"""A trace leads from the request to the database, the worker, the webhook and the event."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.rabbitmq import RabbitMQ
from service.events.rabbitmq import routing_key
from tests.api import TIMEOUT, upsert_request
from tests.conftest import StartProgram
from tests.events.consumer import Consumer
from tests.observing import PATIENT, held_lock, until
from tests.operations.place import Place
from tests.receiver import Receiver
from tests.rest_client import Client
from tests.tracing.collector import Collector
from tests.tracing.conftest import Trace, Traced

METHOD = "appointments.v1.AppointmentService/UpsertAppointment"
SUBMIT = "appointments.v1.AppointmentService/SubmitAppointment"
SECRET = "Mrs Nobody's appointment"


@pytest.fixture
def rest(traced: Traced, organization: str) -> Client:
    return Client(traced.gateway, organization)


def test_a_write_is_one_trace_from_the_request_to_the_statement(
    traced: Traced, rest: Client, trace: Trace
) -> None:
    answer = rest.upsert(
        "id of nobody",
        title=SECRET,
        attributes={"phone": SECRET},
        Traceparent=trace.header(),
        X_Actor="nobody",
        Idempotency_Key="key of nobody",
    )
    assert answer.status == 201
    spans = {span.name: span for span in traced.collector.of(trace.id, 5) if span.kind != "SERVER"}
    request, call = [span for span in traced.collector.of(trace.id, 5) if span.kind == "SERVER"]
    if request.service != "appointments-gateway":
        request, call = call, request
    assert (request.service, request.name) == ("appointments-gateway", "UpsertAppointment")
    assert request.parent == trace.parent
    assert request.attributes["http.response.status_code"] == 201
    assert request.attributes["appointments.outcome"] == "CREATED"
    sent = spans[METHOD]
    assert (sent.service, sent.kind, sent.parent) == ("appointments-gateway", "CLIENT", request.id)
    assert (call.service, call.name) == ("appointments-service", "UpsertAppointment")
    assert call.parent == sent.id
    assert call.attributes["appointments.organization"] == rest.organization
    assert call.attributes["appointments.request_id"] == answer.headers["X-Request-Id"]
    batch = spans["apply writes"]
    assert (batch.parent, batch.links) == (call.id, frozenset({call.place}))
    assert call.links == {batch.place}
    sql = spans["SQL"]
    assert (sql.parent, sql.kind) == (batch.id, "CLIENT")
    assert "apply_" in sql.attributes["db.query.text"]
    assert not any(span.failed for span in (request, sent, call, batch, sql))
    everything = b"".join(traced.collector.bodies)
    assert rest.organization.encode() in everything
    for personal in (SECRET, "nobody"):
        assert personal.encode() not in everything


def test_a_read_has_its_statement(traced: Traced, rest: Client, trace: Trace) -> None:
    assert rest.call("GET", "/appointments/none", Traceparent=trace.header()).status == 404
    sql = traced.collector.one(trace.id, "SQL")
    [call] = [span for span in traced.collector.of(trace.id, 4) if span.id == sql.parent]
    assert (call.name, call.service) == ("GetAppointment", "appointments-service")
    # It is not the service's fault.
    assert not call.failed


def test_a_batch_is_linked_with_all_writes_that_it_carries(
    collector: Collector, place: Place, start_service: StartProgram, organization: str
) -> None:
    """While the first write waits for the lock, the others wait for it, and go together then."""
    service = start_service(DATABASE_URL=place.url, **collector.settings, **PATIENT)
    first, *others = traces = [Trace() for _ in range(5)]
    plain = Trace()

    def write(number: int, header: str) -> None:
        AppointmentServiceStub(channel).UpsertAppointment(
            upsert_request(organization, f"a{number}", number),
            timeout=TIMEOUT,
            metadata=(("traceparent", header),),
        )

    def queued() -> bool:
        address = f"http://127.0.0.1:{service.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return b"\nappointments_queued_writes 5.0\n" in answer.read()

    with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor() as threads:
        with held_lock(place.url, organization) as lock:
            writes = [threads.submit(write, 0, first.header())]
            lock.wait_for(1)
            for number, trace in enumerate(others, 1):
                writes.append(threads.submit(write, number, trace.header()))
            writes.append(threads.submit(write, 9, plain.header(sampled=False)))
            until(queued)
        for done in writes:
            done.result()
    calls = [collector.one(trace.id, "UpsertAppointment") for trace in traces]
    batches = [span for span in collector.spans if span.name == "apply writes"]
    [together] = [span for span in batches if len(span.links) > 1]
    assert together.links == {call.place for call in calls[1:]}
    assert together.attributes["appointments.writes"] == 5
    # The trace of one of them has the batch and its statement, the others a link.
    [leader] = [call for call in calls[1:] if call.place == (together.trace, together.parent)]
    assert all(call.links == {together.place} for call in calls[1:])
    assert collector.one(leader.trace, "SQL").parent == together.id
    assert not any(span.trace == plain.id for span in collector.spans)


def test_an_accepted_write_is_followed_to_the_worker(
    traced: Traced, rest: Client, trace: Trace
) -> None:
    answer = rest.upsert(Traceparent=trace.header(), Prefer="respond-async")
    assert answer.status == 202
    apply = traced.collector.one(trace.id, "apply operation")
    submitted = traced.collector.one(trace.id, "SubmitAppointment")
    assert (apply.service, apply.kind) == ("appointments-worker", "CONSUMER")
    assert apply.parent == submitted.id
    batch = traced.collector.one(trace.id, "apply operations")
    assert (batch.parent, batch.links, apply.links) == (
        apply.id,
        frozenset({apply.place}),
        frozenset({batch.place}),
    )
    queueing = traced.collector.one(trace.id, "queue operations")
    assert (queueing.parent, queueing.links) == (submitted.id, frozenset({submitted.place}))


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "respond-async"}])
def test_a_webhook_gets_the_trace_of_the_change(
    traced: Traced, rest: Client, trace: Trace, prefer: dict[str, str]
) -> None:
    with Receiver() as receiver:
        body = {"organizationId": rest.organization, "url": receiver.url("/hook")}
        hook = rest.send(
            "POST", "/api/webhooks", json.dumps(body).encode(), Content_Type="application/json"
        ).json
        rest.upsert("a", Traceparent=trace.header(), **prefer)
        until(lambda: len(receiver.requests) == 1)
        rest.upsert("b", start="2030-02-01 10:00", end="2030-02-01 11:00", **NOT_SAMPLED)
        until(lambda: len(receiver.requests) == 2)
        sampled, plain = receiver.requests
        rest.call("DELETE", f"/webhooks/{hook['id']}")
    sent = traced.collector.one(trace.id, "send to webhook")
    assert sampled.headers["traceparent"] == f"00-{trace.id}-{sent.id}-01"
    assert "traceparent" not in plain.headers
    assert sent.attributes["http.response.status_code"] == 200
    assert sent.attributes["appointments.revision"] == 1
    assert receiver.url("/hook").encode() not in b"".join(traced.collector.bodies)
    call = "SubmitAppointment" if prefer else "UpsertAppointment"
    spans = [span for span in traced.collector.spans if span.trace == trace.id]
    [stored] = [span for span in spans if span.id == sent.parent]
    assert (stored.name, stored.service) == (call, "appointments-service")


NOT_SAMPLED = {"Traceparent": Trace().header(sampled=False)}


def test_rabbitmq_carries_traces_in_operations_and_events(
    collector: Collector,
    place: Place,
    rabbitmq: RabbitMQ,
    start_service: StartProgram,
    start_worker: StartProgram,
    organization: str,
    trace: Trace,
) -> None:
    broker = rabbitmq.add_virtual_host("traces")
    settings = {
        **collector.settings,
        "DATABASE_URL": place.url,
        "AMQP_URL": broker,
        "OPERATION_QUEUE": "rabbitmq",
    }
    service = start_service(**settings)
    start_worker(**settings)
    keys = [routing_key(organization, "created")]
    with (
        Consumer(rabbitmq, keys, virtual_host="traces") as consumer,
        grpc.insecure_channel(service.address) as channel,
    ):
        AppointmentServiceStub(channel).SubmitAppointment(
            submit_request(organization),
            timeout=TIMEOUT,
            metadata=(("traceparent", trace.header()),),
        )
        until(lambda: len(consumer.messages) == 1)
    published = collector.one(trace.id, "publish appointments.events")
    assert published.kind == "PRODUCER"
    [event] = consumer.messages
    assert event.headers["traceparent"] == f"00-{trace.id}-{published.id}-01"
    submitted = collector.one(trace.id, "SubmitAppointment")
    assert published.parent == submitted.id
    assert collector.one(trace.id, "apply operation").parent == submitted.id


def submit_request(organization: str) -> rpc.SubmitAppointmentRequest:
    return rpc.SubmitAppointmentRequest(upsert=upsert_request(organization, "a", 1))


def test_probes_begin_no_traces(traced: Traced, rest: Client, trace: Trace) -> None:
    for path in ("/healthz", "/readyz"):
        assert rest.send("GET", path, Traceparent=trace.header()).status == 200
    rest.call("GET", "/appointments/a", Traceparent=trace.header())
    traced.collector.one(trace.id, "SQL")  # the last one that begins
    names = {span.name for span in traced.collector.spans}
    assert names.isdisjoint({"/healthz", "/readyz", "Check", "grpc.health.v1.Health/Check"})
