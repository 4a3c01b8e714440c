"""A service that is stopped or killed under load."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization
from tests.conftest import StartProgram
from tests.load import Load
from tests.observing import metric, until
from tests.operations.place import Place
from tests.rest_client import Client


def test_sigterm_under_load_fails_no_call_that_was_accepted(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service()
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 500)
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGINT)  # a second one changes nothing
        assert service.process.wait(timeout=20) == 0
        load.stop()
    org = Organization(stub, organization)
    stored = set(org.listed(page_size=1000))
    # Writes that succeeded are stored. Writes that failed are not: they were never accepted.
    assert stored == set(load.accepted)
    # grpc returns CANCELLED for a call that reaches a stopping server.
    codes = {code for _, code in load.failed}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    org.check_history()
    logged = [json.loads(line) for line in service.log_lines()]
    events = [line["event"] for line in logged if line["event"] != "request"]
    # The tests have no SECRETS_KEYS.
    assert events == ["secrets are stored as plain text", "listening", "stopping", "stopped"]


def test_sigint_ends_it_with_code_0_too(start_service: StartProgram) -> None:
    service = start_service()
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(timeout=20) == 0


def test_a_killed_service_loses_no_answered_write(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service()
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 300)
        service.kill()
        load.stop()
    org = Organization(stub, organization)
    assert set(load.accepted) <= set(org.listed(page_size=1000))
    org.check_history()


def test_sigterm_answers_those_who_wait_for_operations(
    place: Place, start_gateway: StartProgram
) -> None:
    gateway = start_gateway(SERVICE_ADDRESS=place.service.address)
    organization, rest = place.organization("org"), Client(gateway, "org")
    operation = organization.upsert("a", 0, 1)  # which no worker applies
    path = f"/operations/{operation.name.rpartition('/')[2]}"
    assert rest.call("GET", path).status == 200
    with ThreadPoolExecutor() as pool:
        by_grpc = pool.submit(organization.wait, operation, timeout=20)
        until(place.waited_for)
        by_rest = pool.submit(rest.call, "GET", path, wait="20s")
        until(lambda: metric(gateway, "gateway_calls_in_flight") == 1)
        started = time.monotonic()
        assert place.service.stop() == 0
        assert time.monotonic() - started < 5
        assert not by_grpc.result().done
        assert by_rest.result().json["done"] is False
