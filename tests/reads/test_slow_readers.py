"""Streams whose readers take nothing: what each of them costs, and how it ends."""

import json
import socket
from contextlib import ExitStack
from http.client import HTTPResponse, IncompleteRead
from io import BytesIO

import grpc
import psutil
import pytest
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.api import Organization, refusal
from tests.conftest import StartProgram
from tests.load import UNCOMPRESSED
from tests.observing import metric, until
from tests.reads.test_watch import Watcher, write_large
from tests.rest.test_event_stream import stopped_sending
from tests.rest_client import EventReader, Events

READERS = 30
COUNT = 1000
"""Changes that would be 15 MB for each of them."""

CUT_OFF = 'gateway_event_streams_ended_total{reason="slow_reader"}'


def unread_events(gateway: Program, organization: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    connection.sendall(
        f"GET /api/changes?organizationId={organization} HTTP/1.1\r\nHost: x\r\n"
        "Accept: text/event-stream\r\n\r\n".encode()
    )
    return connection


def kilobytes(program: Program) -> float:
    resident: int = psutil.Process(program.process.pid).memory_info().rss
    return resident / 1000


def unread_messages(stack: ExitStack, service: Program, organization: str) -> None:
    channel = stack.enter_context(grpc.insecure_channel(service.address, UNCOMPRESSED))
    stack.enter_context(Watcher(AppointmentServiceStub(channel), organization)).message()


@pytest.mark.parametrize("kind", ["events", "messages"])
def test_each_costs_some_hundred_kilobytes(
    start_service: StartProgram,
    start_gateway: StartProgram,
    org: Organization,
    organization: str,
    kind: str,
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    write_large(org, COUNT)
    for _ in range(2):  # what reading costs once
        with Events(gateway, organization) as stream:
            assert len(stream.events(COUNT)) == COUNT
    before = kilobytes(service), kilobytes(gateway)
    with ExitStack() as stack:
        for _ in range(READERS):
            if kind == "events":
                stack.enter_context(unread_events(gateway, organization))
            else:
                unread_messages(stack, service, organization)
        until(lambda: stopped_sending(service), within=60)
        assert (kilobytes(service) - before[0]) / READERS < 400
        assert (kilobytes(gateway) - before[1]) / READERS < 500


@pytest.fixture
def impatient(start_service: StartProgram) -> Program:
    return start_service(WATCH_PATIENCE="2")


def test_a_reader_of_events_is_cut_off_and_goes_on_where_it_was(
    impatient: Program, start_gateway: StartProgram, org: Organization, organization: str
) -> None:
    # Also the time in which it must begin to read after all.
    gateway = start_gateway(SERVICE_ADDRESS=impatient.address, WATCH_PATIENCE="4")
    write_large(org, COUNT)
    with unread_events(gateway, organization) as connection:
        until(lambda: metric(gateway, CUT_OFF) == 1)
        until(lambda: metric(impatient, "appointments_watchers") == 0)
        # It reads after all: a stream with an end. Only `read` always tells one that is cut off.
        response = HTTPResponse(connection)
        response.begin()
        reader, seen = EventReader(BytesIO(response.read())), list[int]()
        while event := reader.event():
            assert json.loads(event["data"])["revision"] == event["id"]
            seen.append(int(event["id"]))
    assert seen == list(range(1, len(seen) + 1))
    assert 0 < len(seen) < COUNT
    line = gateway.wait_for_event(lambda event: event.get("code") == "SLOW_READER")
    assert line["organization"] == organization
    with Events(gateway, organization, Last_Event_ID=reader.last_id) as stream:
        rest = [int(event["id"]) for event in stream.events(COUNT - len(seen))]
    assert seen + rest == list(range(1, COUNT + 1))


def test_the_connection_of_one_that_never_reads_is_given_up(
    impatient: Program, start_gateway: StartProgram, org: Organization, organization: str
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=impatient.address, WATCH_PATIENCE="0.5")
    write_large(org, COUNT)
    with unread_events(gateway, organization) as connection:
        until(lambda: metric(gateway, CUT_OFF) == 1)
        until(lambda: metric(gateway, "gateway_event_streams") == 0)
        response = HTTPResponse(connection)
        response.begin()
        with pytest.raises(IncompleteRead):
            response.read()


def test_a_reader_of_messages_is_cut_off_and_goes_on_where_it_was(
    impatient: Program, org: Organization, organization: str
) -> None:
    write_large(org, COUNT)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(impatient.address, UNCOMPRESSED))
        stub = AppointmentServiceStub(channel)
        watcher = stack.enter_context(Watcher(stub, organization))
        seen = [entry.revision for entry in watcher.message().entries]
        line = impatient.wait_for_event(lambda event: event.get("reason") == "SLOW_READER")
        assert (line["code"], line["method"]) == ("UNAVAILABLE", "WatchAppointments")
        until(lambda: metric(impatient, "appointments_watchers") == 0)
        with pytest.raises(grpc.RpcError) as caught:  # noqa: PT012  # what had arrived comes first
            while True:
                seen += [entry.revision for entry in watcher.message().entries]
        ended = refusal(caught.value)
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "SLOW_READER")
        again = stack.enter_context(Watcher(stub, organization, seen[-1]))
        seen += [entry.revision for entry in again.entries_up_to(COUNT)]
    assert seen == list(range(1, COUNT + 1))
