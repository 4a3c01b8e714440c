"""Every call passes one place that checks its caller, by either way, before anything else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from appointments.relay.v1 import relay_pb2
from appointments.relay.v1.relay_pb2_grpc import (
    RelayServiceStub,
    add_RelayServiceServicer_to_server,
)
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import (
    UpsertAppointmentRequest,
    UpsertAppointmentResponse,
    WatchAppointmentsRequest,
    WatchAppointmentsResponse,
)
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from structlog.testing import capture_logs

from service.access.principal import ADMIN, READ, WRITE, Principal
from service.errors import Unauthenticated
from service.metrics import Metrics
from service.rpc.context import CallContext, read_context
from service.rpc.direct import direct_handlers
from service.rpc.handler import Call, CallHandler
from service.rpc.relay import RelayServicer
from service.rpc.request_reader import Arrivals, RequestReader
from service.server import APPOINTMENTS

SERVICE = APPOINTMENTS.full_name
UPSERT = f"/{SERVICE}/UpsertAppointment"
WATCH = f"/{SERVICE}/WatchAppointments"
SCOPES = {"writer": (WRITE,), "reader": (READ,), "admin": (READ, WRITE, ADMIN)}

OURS = UpsertAppointmentRequest(appointment=Appointment(organization_id="ours"))
THEIRS = UpsertAppointmentRequest(appointment=Appointment(organization_id="theirs"))


class Servicer:
    """Returns the actor of a write, and counts the calls that reach it."""

    calls = 0

    async def UpsertAppointment(
        self, _: UpsertAppointmentRequest, call: Call
    ) -> UpsertAppointmentResponse:
        self.calls += 1
        return UpsertAppointmentResponse(appointment=Appointment(title=call.context.actor))

    async def WatchAppointments(
        self, _: WatchAppointmentsRequest, __: Call
    ) -> AsyncIterator[WatchAppointmentsResponse]:
        self.calls += 1
        yield WatchAppointmentsResponse(revision=1)


async def authenticate(context: CallContext) -> Principal:
    name = (context.authorization or "").removeprefix("Bearer ")
    if name not in SCOPES:
        raise Unauthenticated("a credential is required")
    return Principal(
        subject=name,
        credential_id=f"key:{name}",
        organizations=frozenset({"ours"}),
        scopes=frozenset(SCOPES[name]),
    )


class Served:
    def __init__(self, channel: aio.Channel, servicer: Servicer) -> None:
        self.channel = channel
        self.servicer = servicer

    async def plain(self, path: str, request: bytes, *metadata: tuple[str, str]) -> bytes | Status:
        """Return the last response of a plain call, or its status."""
        method: Any = self.channel.unary_stream(path)
        call = method(request, metadata=metadata, timeout=5)
        try:
            return [message async for message in call][-1]
        except aio.AioRpcError as error:
            details = dict(error.trailing_metadata() or ())
            return Status.FromString(details["grpc-status-details-bin"])

    async def relayed(
        self, path: str, request: bytes, *metadata: tuple[str, str]
    ) -> bytes | Status:
        """Return the response of a relayed call, or its status."""
        stream = RelayServiceStub(self.channel).Relay()
        sent = [relay_pb2.Metadata(key=key, text=text) for key, text in metadata]
        call = relay_pb2.Call(number=1, method=path, request=request, metadata=sent)
        await stream.write(relay_pb2.RelayRequest(calls=[call]))
        response = await stream.read()
        stream.cancel()
        assert isinstance(response, relay_pb2.RelayResponse)
        [answer] = response.answers
        return answer.error if answer.HasField("error") else answer.response


@asynccontextmanager
async def serving(*, control: bool) -> AsyncIterator[Served]:
    metrics = Metrics()
    servicer = Servicer()
    calls = CallHandler(
        {APPOINTMENTS: servicer},
        metrics,
        timeout=5,
        send_timeout=5,
        max_bytes=100_000,
        authenticate=authenticate if control else None,
    )
    reader = RequestReader(Arrivals(), max_calls=10)
    server = aio.server()
    server.add_generic_rpc_handlers(
        (direct_handlers(APPOINTMENTS, calls.handle, calls.stream, reader),)
    )
    add_RelayServiceServicer_to_server(
        RelayServicer(calls.handle, metrics, stream_age=60, max_calls=100, send_timeout=5), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(channel, servicer)
    finally:
        await server.stop(None)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(control=True) as served:
        yield served


def bearer(name: str) -> tuple[str, str]:
    return "authorization", f"Bearer {name}"


def reason_of(answer: bytes | Status) -> str:
    assert isinstance(answer, Status), answer
    info = ErrorInfo()
    assert answer.details[0].Unpack(info)
    return str(info.reason)


def actor_in(answer: bytes | Status) -> str:
    assert isinstance(answer, bytes), answer
    return UpsertAppointmentResponse.FromString(answer).appointment.title


async def test_a_caller_is_checked_by_either_way(served: Served) -> None:
    for call in (served.plain, served.relayed):
        for metadata in ((), (bearer("unknown"),), (bearer("writer"), bearer("writer"))):
            answer = await call(UPSERT, OURS.SerializeToString(), *metadata)
            assert reason_of(answer) == "UNAUTHENTICATED"
        for name, request in (("reader", OURS), ("writer", THEIRS), ("admin", THEIRS)):
            answer = await call(UPSERT, request.SerializeToString(), bearer(name))
            assert reason_of(answer) == "PERMISSION_DENIED"
    assert served.servicer.calls == 0
    for call in (served.plain, served.relayed):
        answer = await call(UPSERT, OURS.SerializeToString(), bearer("writer"))
        assert actor_in(answer) == "writer"
    assert served.servicer.calls == 2


async def test_a_stream_is_checked_too(served: Served) -> None:
    ours = WatchAppointmentsRequest(organization_id="ours").SerializeToString()
    assert reason_of(await served.plain(WATCH, ours)) == "UNAUTHENTICATED"
    assert reason_of(await served.plain(WATCH, ours, bearer("writer"))) == "PERMISSION_DENIED"
    theirs = WatchAppointmentsRequest(organization_id="theirs").SerializeToString()
    assert reason_of(await served.plain(WATCH, theirs, bearer("reader"))) == "PERMISSION_DENIED"
    assert served.servicer.calls == 0
    assert isinstance(await served.plain(WATCH, ours, bearer("reader")), bytes)


async def test_an_unknown_caller_learns_nothing_of_its_request(served: Served) -> None:
    malformed = b"\xff"
    assert reason_of(await served.plain(UPSERT, malformed)) == "UNAUTHENTICATED"
    answer = await served.plain(UPSERT, malformed, bearer("writer"))
    assert reason_of(answer) == "MALFORMED_REQUEST"


async def test_an_unknown_caller_is_refused_before_it_sends_its_request(served: Served) -> None:
    call: Any = served.channel.stream_unary(UPSERT)(timeout=5)
    with pytest.raises(aio.AioRpcError, match="a credential is required"):
        await call


async def test_the_actor_is_the_subject_unless_an_admin_states_another(served: Served) -> None:
    ours = OURS.SerializeToString()
    stated = ("x-actor", "somebody")
    assert actor_in(await served.plain(UPSERT, ours, bearer("admin"), stated)) == "somebody"
    assert actor_in(await served.plain(UPSERT, ours, bearer("admin"))) == "admin"
    answer = await served.plain(UPSERT, ours, bearer("writer"), stated)
    assert reason_of(answer) == "PERMISSION_DENIED"
    own = ("x-actor", "writer")
    assert actor_in(await served.plain(UPSERT, ours, bearer("writer"), own)) == "writer"


async def test_while_it_is_off_credentials_are_ignored() -> None:
    async with serving(control=False) as served:
        for metadata in ((), (bearer("unknown"),)):
            stated = ("x-actor", "somebody")
            answer = await served.plain(UPSERT, THEIRS.SerializeToString(), *metadata, stated)
            assert actor_in(answer) == "somebody"


async def test_logs_name_the_credential_without_its_secret(served: Served) -> None:
    with capture_logs() as logs:
        await served.plain(UPSERT, OURS.SerializeToString(), bearer("writer"))
        await served.plain(UPSERT, OURS.SerializeToString(), bearer("a-secret"))
    [admitted, refused] = logs
    assert admitted["credential"] == "key:writer"
    assert refused["reason"] == "UNAUTHENTICATED"
    assert "a-secret" not in str(logs)


def test_a_context_is_shown_without_its_credential() -> None:
    context = read_context([("authorization", "Bearer a-secret")], None)
    assert "a-secret" in str(context.authorization)
    assert "a-secret" not in f"{context} {Call(context)}"
