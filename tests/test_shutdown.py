"""The end of a service, orderly or not, under load."""

import signal

import grpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization
from tests.conftest import StartProgram
from tests.load import Load
from tests.observing import until


def test_sigterm_under_load_fails_no_call_that_was_accepted(
    start_service: StartProgram, stub: AppointmentServiceStub, organization: str
) -> None:
    service = start_service()
    with Load(service.address, organization) as load:
        until(lambda: len(load.accepted) > 500)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=20) == 0
        load.stop()
    org = Organization(stub, organization)
    stored = set(org.listed(page_size=1000))
    # Answered: stored. Failed: not stored, so the service had never accepted it.
    assert stored == set(load.accepted)
    # CANCELLED is grpc's answer to a call that reaches a server which has begun to stop.
    codes = {code for _, code in load.failed}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    org.check_history()


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
