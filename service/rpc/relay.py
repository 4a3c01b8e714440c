"""Serves gateways: one stream carries the calls of many callers, several in a message.

Answers that become ready while a message is being written are sent together as the next one.
There is no timer: a single answer is sent at once, and messages grow with the load.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator

import grpc
from appointments.relay.v1 import relay_pb2 as pb
from appointments.relay.v1 import relay_pb2_grpc
from google.rpc.status_pb2 import Status

from service.metrics import Metrics
from service.rpc.context import read_context
from service.rpc.handler import Call, Handle

# The answers of a message have at most this size, unless it has only one.
MAX_MESSAGE_BYTES = 1024 * 1024

Context = grpc.aio.ServicerContext[pb.RelayRequest, pb.RelayResponse]


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """Serves any number of gateways, each on its own streams.

    After about `stream_age` (seconds) a gateway is asked to open a new stream, which may reach
    another process or address.
    """

    def __init__(self, handle: Handle, metrics: Metrics, *, stream_age: float) -> None:
        self._handle = handle
        self._metrics = metrics
        self._stream_age = stream_age
        self._streams: set[_Stream] = set()
        self._closing = False

    def close(self) -> None:
        """Ask the gateways to end their streams after they have received all answers."""
        self._closing = True
        for stream in self._streams:
            stream.close()

    async def Relay(  # type: ignore[override]  # the stubs know iterators as results only
        self, requests: AsyncIterator[pb.RelayRequest], context: Context
    ) -> None:
        stream = _Stream(self._handle, self._metrics)
        if self._closing:
            stream.close()
        self._streams.add(stream)
        age = self._stream_age * random.uniform(0.8, 1.2)  # noqa: S311  # spreads load
        aged = asyncio.get_running_loop().call_later(age, stream.close)
        try:
            await stream.serve(requests, context)
        finally:
            aged.cancel()
            self._streams.discard(stream)


class _Stream:
    """The calls of one stream, and the answers that are not written yet."""

    def __init__(self, handle: Handle, metrics: Metrics) -> None:
        self._handle = handle
        self._metrics = metrics
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unwritten: deque[pb.RelayResponse] = deque()
        self._last_size = 0
        self._complete = False
        self._wake = asyncio.Event()

    async def serve(self, requests: AsyncIterator[pb.RelayRequest], context: Context) -> None:
        """Answer all calls. If it is cancelled or the stream breaks, the calls are cancelled."""
        async with asyncio.TaskGroup() as writing:
            writing.create_task(self._write(context))
            async with asyncio.TaskGroup() as answering:
                async for request in requests:
                    self._start_calls(request, answering)
            self._complete = True
            self._wake.set()

    def close(self) -> None:
        self._message_for(0).closing = True

    def _start_calls(self, request: pb.RelayRequest, answering: asyncio.TaskGroup) -> None:
        """Start the calls of a request, and cancel those that it cancels."""
        if request.calls:
            self._metrics.relayed_calls.observe(len(request.calls))
        for call in request.calls:
            self._tasks[call.number] = answering.create_task(self._answer(call))
        for number in request.cancelled:
            task = self._tasks.pop(number, None)
            if task is not None:
                task.cancel()

    async def _answer(self, sent: pb.Call) -> None:
        call = Call(
            read_context(
                [(each.key, each.text or each.binary) for each in sent.metadata],
                sent.timeout_ms / 1000 if sent.HasField("timeout_ms") else None,
            )
        )

        async def receive() -> bytes:
            return sent.request

        result = await self._handle(sent.method, receive, call)
        # Missing if the call was cancelled after its answer was ready.
        self._tasks.pop(sent.number, None)
        if isinstance(result, Status):
            message = self._message_for(result.ByteSize())
            message.answers.add(
                number=sent.number,
                error=result,
                organization_revision=call.organization_revision,
            )
        else:
            message = self._message_for(len(result))
            message.answers.add(
                number=sent.number,
                response=result,
                organization_revision=call.organization_revision,
            )

    def _message_for(self, size: int) -> pb.RelayResponse:
        """Return the message to which the next answer, of `size` bytes, is added."""
        if not self._unwritten or self._last_size + size > MAX_MESSAGE_BYTES:
            self._unwritten.append(pb.RelayResponse())
            self._last_size = 0
        self._last_size += size
        self._wake.set()
        return self._unwritten[-1]

    async def _write(self, context: Context) -> None:
        while self._unwritten or not self._complete:
            await self._wake.wait()
            self._wake.clear()
            while self._unwritten:
                await context.write(self._unwritten.popleft())
