"""Tests of a client program with a channel of grpcio-testing and fake time.

There is no server, no network and no waiting: a test takes each call from the channel and
responds to it. The channel does not enforce deadlines, so a test ends such a call itself.
"""

import threading
from concurrent.futures import Future
from datetime import UTC, datetime

import grpc
import grpc_testing
import pytest
from appointments.v1.appointment_pb2 import Appointment, Outcome, TimeRangeConflict
from appointments.v1.appointment_service_pb2 import (
    DESCRIPTOR,
    UpsertAppointmentRequest,
    UpsertAppointmentResponse,
)
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from booking import DEADLINE, FIRST_DELAY, RETRY_FOR, appointment, book
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

pytestmark = pytest.mark.timeout(10)  # taking a call blocks until there is one

SERVICE = DESCRIPTOR.services_by_name["AppointmentService"]
UPSERT = SERVICE.methods_by_name["UpsertAppointment"]
MEETING = appointment("o", "meeting", datetime(2030, 1, 1, 10, tzinfo=UTC), minutes=30, title="")
CREATED = "CREATED meeting 10:00-10:30 version 1"


class Caller:
    """Runs `book` in a thread, and takes the calls that it makes."""

    def __init__(self) -> None:
        self.clock = grpc_testing.strict_fake_time(0)
        self._channel = grpc_testing.channel([SERVICE], self.clock)

    def book(self) -> "Future[str]":
        result: Future[str] = Future()
        threading.Thread(target=self._book, args=[result], daemon=True).start()
        return result

    def _book(self, result: "Future[str]") -> None:
        stub = AppointmentServiceStub(self._channel)
        try:
            result.set_result(book(stub, MEETING, sleep=self.clock.sleep_for, now=self.clock.time))
        except BaseException as error:
            result.set_exception(error)
            raise

    def take(self) -> UpsertAppointmentRequest:
        """Wait for the next call."""
        _, request, self._call = self._channel.take_unary_unary(UPSERT)
        assert isinstance(request, UpsertAppointmentRequest)
        return request

    def accept(self) -> None:
        stored = Appointment(version=1)
        stored.MergeFrom(MEETING)
        response = UpsertAppointmentResponse(outcome=Outcome.CREATED, appointment=stored)
        self._call.terminate(response, (), grpc.StatusCode.OK, "")

    def refuse(self, code: grpc.StatusCode, *details: Message) -> None:
        status = Status(code=code.value[0])
        for detail in details:
            status.details.add().Pack(detail)
        trailer = ("grpc-status-details-bin", status.SerializeToString())
        self._call.terminate(None, [trailer] if details else [], code, "")


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_a_successful_call_is_sent_once(caller: Caller) -> None:
    result = caller.book()
    request = caller.take()
    caller.accept()
    assert result.result() == CREATED
    assert request.appointment == MEETING
    assert request.idempotency_key


def test_a_call_without_a_response_is_sent_again_with_the_same_key(caller: Caller) -> None:
    result = caller.book()
    first = caller.take()
    caller.clock.sleep_for(DEADLINE)
    caller.refuse(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert caller.take() == first
    caller.accept()
    assert result.result() == CREATED


def test_an_overloaded_service_is_called_again_after_its_retry_delay(caller: Caller) -> None:
    result = caller.book()
    caller.take()
    retry = RetryInfo(retry_delay=Duration(seconds=2))
    caller.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorInfo(reason="OVERLOADED"), retry)
    caller.take()
    assert 2 <= caller.clock.time() <= 3
    caller.accept()
    assert result.result() == CREATED


def test_delays_grow(caller: Caller) -> None:
    result = caller.book()
    caller.take()
    for number in range(5):
        before = caller.clock.time()
        caller.refuse(grpc.StatusCode.UNAVAILABLE)
        caller.take()
        delay = FIRST_DELAY * 2**number
        assert delay <= caller.clock.time() - before <= 1.5 * delay + 1e-9
    caller.accept()
    assert result.result() == CREATED


def test_a_conflict_is_final(caller: Caller) -> None:
    result = caller.book()
    caller.take()
    taken = TimeRangeConflict.Conflict(id="other", start=MEETING.start, end=MEETING.end)
    caller.refuse(
        grpc.StatusCode.ALREADY_EXISTS,
        ErrorInfo(reason="TIME_RANGE_CONFLICT"),
        TimeRangeConflict(conflicts=[taken]),
    )
    assert result.result() == "refused, ALREADY_EXISTS, TIME_RANGE_CONFLICT, by other 10:00-10:30"
    assert caller.clock.time() == 0


def test_no_delay_exceeds_the_retry_time(caller: Caller) -> None:
    result = caller.book()
    caller.take()
    retry = RetryInfo(retry_delay=Duration(seconds=RETRY_FOR + 1))
    caller.refuse(grpc.StatusCode.UNAVAILABLE, ErrorInfo(reason="LOCK_TIMEOUT"), retry)
    assert result.result() == "refused, UNAVAILABLE, LOCK_TIMEOUT, again in 31000 ms"
    assert caller.clock.time() == 0
