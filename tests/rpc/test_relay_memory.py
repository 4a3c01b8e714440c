"""What the answers of many streams take together while nobody reads them."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from appointments.relay.v1 import relay_pb2 as pb
from appointments.relay.v1 import relay_pb2_grpc
from structlog.testing import capture_logs

from service.metrics import Metrics
from service.rpc import relay
from service.rpc.handler import Call, Receive
from service.rpc.relay import RelayServicer
from tests.rpc.test_relay import FIXED_WINDOW

ANSWER = bytes(128 * 1024)
MIB = 1024 * 1024
STREAMS = 8


async def answer(method: str, receive: Receive, call: Call) -> bytes:
    await receive()
    return ANSWER


async def test_streams_that_nobody_reads_end_when_all_together_take_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of them fit. A stream that is read goes on, and ends none of them by itself."""
    monkeypatch.setattr(relay, "MAX_ALL_UNWRITTEN_BYTES", STREAMS // 2 * relay.MAX_UNWRITTEN_BYTES)
    monkeypatch.setattr(relay, "MAX_STALL", 0.2)
    servicer = RelayServicer(answer, Metrics(), stream_age=60, max_calls=1000, send_timeout=60)
    unwritten = servicer._all_unwritten
    server = grpc.aio.server()
    relay_pb2_grpc.add_RelayServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        streams: list[Any] = []
        for number in range(STREAMS + 1):
            options = [*FIXED_WINDOW, ("grpc.use_local_subchannel_pool", 1), ("number", number)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
            await stack.enter_async_context(channel)
            streams.append(relay_pb2_grpc.RelayServiceStub(channel).Relay())
        read, *unread = streams
        with capture_logs() as logs:
            for stream in unread:
                calls = [pb.Call(number=number + 1, method="/a/b") for number in range(100)]
                for call in calls:
                    await stream.write(pb.RelayRequest(calls=[call]))
            async with asyncio.timeout(30):
                await _call(read)
                while len(logs) < STREAMS // 2 - 1 or unwritten.size > STREAMS // 2 * 4 * MIB:
                    await _call(read)
            ended = len(logs)
            for _ in range(100):
                await _call(read)
        assert unwritten.size > 4 * MIB
        assert len(logs) == ended < STREAMS
        assert {(log["event"], log["reason"]) for log in logs} == {("relay ended", "SLOW_READER")}
        for stream in streams:
            stream.cancel()
        async with asyncio.timeout(10):
            while unwritten.size > 0:  # noqa: ASYNC110  the streams end by themselves
                await asyncio.sleep(0.01)
        assert unwritten.size == 0


async def _call(stream: Any) -> None:
    await stream.write(pb.RelayRequest(calls=[pb.Call(number=1, method="/a/b")]))
    response = await stream.read()
    assert [len(each.response) for each in response.answers] == [len(ANSWER)]
