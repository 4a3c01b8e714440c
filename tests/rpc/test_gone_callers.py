"""A caller that disconnects during a response is not an unexpected error."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from appointments.v1.appointment_service_pb2 import WatchAppointmentsResponse
from google.rpc.status_pb2 import Status
from structlog.testing import capture_logs

from service.metrics import Metrics
from service.rpc.direct import direct_handlers
from service.rpc.handler import CallHandler
from service.rpc.request_reader import Arrivals, RequestReader, refuse
from service.server import APPOINTMENTS

METHOD = "/appointments.v1.AppointmentService/WatchAppointments"


class Gone:
    """The context of a call whose caller has disconnected, before gRPC cancels the call."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def read(self) -> bytes:
        return b""

    async def send_initial_metadata(self, *_: object) -> None:
        raise grpc.aio.InternalError

    write = abort = send_initial_metadata


class Servicer:
    async def WatchAppointments(self, *_: object) -> AsyncIterator[WatchAppointmentsResponse]:
        yield WatchAppointmentsResponse()


async def test_a_stream_whose_caller_has_gone_is_cancelled() -> None:
    metrics = Metrics()
    calls = CallHandler(
        {APPOINTMENTS: Servicer()}, metrics, timeout=5, send_timeout=5, max_bytes=10_000
    )
    handlers = direct_handlers(
        APPOINTMENTS, calls.handle, calls.stream, RequestReader(Arrivals(), max_calls=1)
    )
    answer: Any = handlers.service(cast("Any", SimpleNamespace(method=METHOD)))
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await answer.stream_stream(None, Gone())
    assert [(each["log_level"], each["code"]) for each in logs] == [("info", "CANCELLED")]


async def test_a_refusal_whose_caller_has_gone_is_cancelled() -> None:
    status = Status(code=grpc.StatusCode.ABORTED.value[0])
    with pytest.raises(asyncio.CancelledError):
        await refuse(cast("Any", Gone()), status)
