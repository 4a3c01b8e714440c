"""Streams that end before the service has answered on them cost no call."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from appointments.relay.v1 import relay_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from prometheus_client import Counter

from gateway.upstream.channels import Connection
from gateway.upstream.relay import LANES, PAUSES, CallError, Relay
from service.rpc.relay import Context, RelayServicer
from tests.conftest import StartProgram
from tests.gateway.conftest import running_gateway
from tests.gateway.fake_service import fake_service

GREETING = pb.RelayRequest(calls=[pb.Call()])
GET = "/appointments.v1.AppointmentService/GetAppointment"
# Messages that a stream received.
Received = list[pb.RelayRequest]
Fault = Callable[[Received, AsyncIterator[pb.RelayRequest], Context], Awaitable[object]]


async def refuse(received: Received, requests: AsyncIterator[pb.RelayRequest], _: Context) -> None:
    received.append(await anext(requests))


async def say_nothing(
    received: Received, requests: AsyncIterator[pb.RelayRequest], _: Context
) -> None:
    try:
        async with asyncio.timeout(0.3):
            async for request in requests:
                received.append(request)
    except TimeoutError:
        return


async def break_off(
    received: Received, requests: AsyncIterator[pb.RelayRequest], context: Context
) -> None:
    """End when a call has been received."""
    await context.write(pb.RelayResponse(instance="this"))
    async for request in requests:
        received.append(request)
        if request != GREETING:
            return


def ending(fault: Fault, streams: int, received: Received) -> type[RelayServicer]:
    """Return a servicer whose first streams end by a fault."""
    begun = 0

    class Ending(RelayServicer):
        async def Relay(  # type: ignore[override]
            self, requests: AsyncIterator[pb.RelayRequest], context: Context
        ) -> None:
            nonlocal begun
            begun += 1
            if begun <= streams:
                await fault(received, requests, context)
                await context.abort(grpc.StatusCode.CANCELLED)
            await super().Relay(requests, context)

    return Ending


@pytest.mark.parametrize("fault", [refuse, say_nothing])
async def test_a_call_is_made_on_the_next_stream(fault: Fault) -> None:
    received: Received = []
    async with (
        fake_service(relay=ending(fault, len(PAUSES) - 1, received)) as service,
        running_gateway(service) as gateway,
    ):
        answers = await asyncio.gather(*(gateway.upsert() for _ in range(5)))
        assert [answer.status for answer in answers] == [201] * 5
        assert service.calls == 5
    assert received == [GREETING] * (len(PAUSES) - 1)


async def test_a_call_fails_if_one_stream_after_another_ends() -> None:
    received: Received = []
    async with (
        fake_service(relay=ending(refuse, len(PAUSES), received)) as service,
        running_gateway(service) as gateway,
    ):
        answer = await gateway.upsert()
        assert (answer.status, answer.json["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert service.calls == 0
        assert (await gateway.upsert()).status == 201
    assert received == [GREETING] * len(PAUSES)


async def test_a_call_that_was_sent_is_not_made_again() -> None:
    received: Received = []
    async with (
        fake_service(relay=ending(break_off, 1, received)) as service,
        running_gateway(service) as gateway,
    ):
        assert (await gateway.upsert()).status == 503
        assert service.calls == 0
        assert (await gateway.upsert()).status == 201
    assert [len(message.calls) for message in received] == [1, 1]
    assert received[0] == GREETING


async def test_a_call_waits_no_longer_than_its_deadline() -> None:
    received: Received = []
    async with (
        fake_service(relay=ending(say_nothing, 1, received)) as service,
        running_gateway(service, gateway_timeout=0.1) as gateway,
    ):
        answer = await gateway.upsert()
        assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")
    assert received == [GREETING]


@asynccontextmanager
async def relay_to(address: str) -> AsyncIterator[tuple[Relay, Connection]]:
    connection = Connection(address)
    errors = Counter("errors", "Unexpected errors.", ["operation"], registry=None)
    relay = Relay(connection, timeout=30, max_message_bytes=2**20, errors=errors)
    try:
        yield relay, connection
    finally:
        await relay.close()
        await connection.close()


async def hang(received: Received, requests: AsyncIterator[pb.RelayRequest], _: Context) -> None:
    async for request in requests:
        received.append(request)


async def test_a_stream_without_an_answer_ends_with_its_connection() -> None:
    """When a connection is replaced, because of a renewed certificate."""
    received: Received = []
    async with (
        fake_service(relay=ending(hang, 1, received)) as service,
        relay_to(f"127.0.0.1:{service.port}") as (relay, connection),
    ):
        call = asyncio.create_task(relay.call(GET, b"", (), organization="o"))
        while not received:  # noqa: ASYNC110  set by the server
            await asyncio.sleep(0.01)
        for finish in list(connection.when_replaced):
            finish()
        assert (await asyncio.wait_for(call, 10)).organization_revision == 7
        assert service.calls == 1
    assert received == [GREETING]


async def test_a_call_ends_with_the_relay_that_has_just_opened_its_stream() -> None:
    async with (
        fake_service() as service,
        relay_to(f"127.0.0.1:{service.port}") as (relay, _),
    ):
        call = asyncio.create_task(relay.call(GET, b"", (), organization="o"))
        await asyncio.sleep(0)
        await relay.close()
        with pytest.raises(CallError) as ended:
            await asyncio.wait_for(call, 10)
    assert ended.value.status.code == grpc.StatusCode.UNAVAILABLE.value[0]


async def test_instances_stop_while_streams_are_opened(
    start_service: StartProgram, organization: str
) -> None:
    """Streams last a tenth of a second, so that many of them reach one in that moment."""
    often = {"GRPC_CONNECTION_AGE": "0.6", "LOG_LEVEL": "warning"}
    stays = start_service(GRPC_HOST="127.0.0.1", **often)
    hosts = [f"127.0.0.{number}" for number in range(2, 6)]
    stop = [start_service(GRPC_HOST=host, GRPC_PORT=str(stays.port), **often) for host in hosts]
    addresses = ",".join(f"{host}:{stays.port}" for host in ["127.0.0.1", *hosts])
    codes: dict[int, int] = {}
    stopped = False

    async def keep_calling(organization: str) -> None:
        request = rpc.GetAppointmentRequest(organization_id=organization, id="none")
        while not stopped:
            with pytest.raises(CallError) as ended:
                await relay.call(GET, request.SerializeToString(), (), organization=organization)
            code = ended.value.status.code
            codes[code] = codes.get(code, 0) + 1

    async with relay_to(f"ipv4:{addresses}") as (relay, _):
        callers = [
            asyncio.create_task(keep_calling(f"{organization}-{number}")) for number in range(LANES)
        ]
        for service in stop:
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(service.stop) == 0
        stopped = True
        await asyncio.gather(*callers)
    assert codes.keys() == {grpc.StatusCode.NOT_FOUND.value[0]}
