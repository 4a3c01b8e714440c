"""Serves gateways: one stream carries the calls of many callers, several in a message.

Answers that become ready while a message is being written are sent together as the next one.
There is no timer: a single answer is sent at once, and messages grow with the load.

A gateway that does not read its answers is not read either: further calls wait in its own buffers,
by gRPC's flow control.
"""

import asyncio
import random
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import structlog
from appointments.relay.v1 import relay_pb2 as pb
from appointments.relay.v1 import relay_pb2_grpc
from google.rpc.status_pb2 import Status

from service.errors import RequestTooLarge, ServiceError, SlowReader
from service.metrics import Metrics
from service.rpc.context import read_context
from service.rpc.handler import Call, Handle
from service.rpc.request_reader import OpenCalls, refuse
from service.rpc.status import status_of

# The answers of a message have at most this size, unless it has only one. If a client stops reading
# in a longer message, gRPC does not show it the end of the stream afterwards.
MAX_MESSAGE_BYTES = 64 * 1024
# A message has at most so many calls, and cancels as many. Gateways send a tenth of it.
MAX_MESSAGE_CALLS = 10_000
# While more bytes of answers are unwritten, no further message is read and no call is started.
MAX_UNWRITTEN_BYTES = 4 * 1024 * 1024
# While more bytes of all streams are unwritten, streams end that were not read for so many seconds.
MAX_ALL_UNWRITTEN_BYTES = 64 * 1024 * 1024
MAX_STALL = 1.0
# About what an answer takes in memory besides its result.
ANSWER_BYTES = 256

Context = grpc.aio.ServicerContext[pb.RelayRequest, pb.RelayResponse]

log = structlog.get_logger()


class RelayServicer(relay_pb2_grpc.RelayServiceServicer):
    """Serves any number of gateways, each on its own streams.

    After about `stream_age` (seconds) a gateway is asked to open a new stream, which may reach
    another process or address. At most `max_calls` calls may be open on all streams together.
    A stream ends with SlowReader if a message cannot be written within `send_timeout` (seconds), or
    within MAX_STALL while too many answers of all streams are unwritten.
    """

    def __init__(
        self,
        handle: Handle,
        metrics: Metrics,
        *,
        stream_age: float,
        max_calls: int,
        send_timeout: float,
    ) -> None:
        self._handle = handle
        self._metrics = metrics
        self._open = OpenCalls(max_calls)
        self._all_unwritten = _AllUnwritten()
        self._max_calls = max_calls
        self._send_timeout = send_timeout
        self._stream_age = stream_age
        self._instance = uuid.uuid4().hex
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
        stream = _Stream(
            self._handle,
            self._metrics,
            self._open,
            self._all_unwritten,
            instance=self._instance,
            max_calls=self._max_calls,
            send_timeout=self._send_timeout,
        )
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
        if stream.failure is not None:
            await refuse(context, status_of(stream.failure))


@dataclass(slots=True)
class _Unwritten:
    """A message that is not written yet, and about how many bytes it takes."""

    message: pb.RelayResponse
    size: int = 0


class _AllUnwritten:
    """The answers of all streams that are not written yet: about how many bytes they take."""

    def __init__(self) -> None:
        self.size = 0
        # The writes in progress with when they began, the longest first.
        self._writes: dict[asyncio.Timeout, float] = {}

    def add(self, size: int) -> None:
        """Count bytes. If there are too many, end the write that waits longest for its reader."""
        self.size += size
        if self.size <= MAX_ALL_UNWRITTEN_BYTES or not self._writes:
            return
        timeout, began = next(iter(self._writes.items()))
        now = asyncio.get_running_loop().time()
        if now - began >= MAX_STALL and not timeout.expired():
            del self._writes[timeout]
            timeout.reschedule(now)

    def remove(self, size: int) -> None:
        self.size -= size

    @contextmanager
    def writing(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Let `add` end the block by its timeout."""
        self._writes[timeout] = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._writes.pop(timeout, None)


class _Stream:
    """The calls of one stream, and the answers that are not written yet."""

    def __init__(
        self,
        handle: Handle,
        metrics: Metrics,
        open_calls: OpenCalls,
        all_unwritten: "_AllUnwritten",
        *,
        instance: str,
        max_calls: int,
        send_timeout: float,
    ) -> None:
        self._handle = handle
        self._metrics = metrics
        self._open = open_calls
        self._all_unwritten = all_unwritten
        self._tasks: dict[int, asyncio.Task[None]] = {}
        # For the first message; then empty.
        self._instance = instance
        self._max_calls = max_calls
        self._send_timeout = send_timeout
        # The calls that have no answer yet, those that wait for their start included.
        self._unanswered = 0
        self._unwritten: deque[_Unwritten] = deque()
        # Of all unwritten messages, including the one that is being written.
        self._unwritten_bytes = 0
        # Set when a call or a message is done. Cleared by those who wait for it.
        self._less = asyncio.Event()
        self._less.set()
        self._complete = False
        self.failure: ServiceError | None = None
        """Why no further message is read."""
        self._wake = asyncio.Event()

    async def serve(self, requests: AsyncIterator[pb.RelayRequest], context: Context) -> None:
        """Answer all calls. If it is cancelled or the stream breaks, the calls are cancelled."""
        try:
            async with asyncio.TaskGroup() as writing:
                writing.create_task(self._write(context))
                async with asyncio.TaskGroup() as answering:
                    await self._read(requests, answering)
                self._complete = True
                self._wake.set()
        except* SlowReader as slow:
            self.failure = SlowReader(*slow.exceptions[0].args)
            self._unwritten.clear()
            log.warning("relay ended", reason=self.failure.reason)
        finally:
            self._all_unwritten.remove(self._unwritten_bytes)

    def close(self) -> None:
        self._message_for(0).closing = True

    async def _read(
        self, requests: AsyncIterator[pb.RelayRequest], answering: asyncio.TaskGroup
    ) -> None:
        async for request in requests:
            if max(len(request.calls), len(request.cancelled)) > MAX_MESSAGE_CALLS:
                self.failure = RequestTooLarge(
                    f"the message has more than {MAX_MESSAGE_CALLS:,} calls"
                )
                return
            self._start_calls(request, answering)
            await self._wait_while(
                lambda: self._has_unwritten() or self._unanswered > self._max_calls
            )

    def _has_unwritten(self) -> bool:
        """Return whether the gateway has to read before it may get further answers."""
        return self._unwritten_bytes > MAX_UNWRITTEN_BYTES

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            self._less.clear()
            await self._less.wait()

    def _start_calls(self, request: pb.RelayRequest, answering: asyncio.TaskGroup) -> None:
        """Start the calls of a request, and cancel those that it cancels."""
        if request.calls and request.calls[0].method:
            self._metrics.relayed_calls.observe(len(request.calls))
        for call in request.calls:
            self._tasks[call.number] = answering.create_task(self._answer_in_turn(call))
        for number in request.cancelled:
            task = self._tasks.pop(number, None)
            if task is not None:
                task.cancel()

    async def _answer_in_turn(self, sent: pb.Call) -> None:
        self._unanswered += 1
        try:
            waited = 0.0
            if self._has_unwritten():
                # It is not open yet, so that others' calls are not refused because of it.
                arrived = asyncio.get_running_loop().time()
                await self._wait_while(self._has_unwritten)
                waited = asyncio.get_running_loop().time() - arrived
            await self._answer(sent, waited)
        finally:
            self._unanswered -= 1
            self._less.set()

    async def _answer(self, sent: pb.Call, waited: float) -> None:
        """Answer a call that was read `waited` seconds ago."""
        call = Call(
            read_context(
                [(each.key, each.text or each.binary) for each in sent.metadata],
                sent.timeout_ms / 1000 - waited if sent.HasField("timeout_ms") else None,
            ),
            relayed=True,
        )

        async def receive() -> bytes:
            self._open.check()
            return sent.request

        with self._open.count():
            result = await self._handle(sent.method, receive, call)
        # Missing if the call was cancelled after its answer was ready.
        self._tasks.pop(sent.number, None)
        if isinstance(result, Status):
            answer = self._message_for(result.ByteSize()).answers.add(
                number=sent.number,
                error=result,
                organization_revision=call.organization_revision,
            )
        else:
            answer = self._message_for(len(result)).answers.add(
                number=sent.number,
                response=result,
                organization_revision=call.organization_revision,
            )
        if call.rate_limits is not None:
            answer.rate_limit_policy, answer.rate_limit = call.rate_limits

    def _message_for(self, size: int) -> pb.RelayResponse:
        """Return the message to which the next answer, of `size` bytes, is added."""
        size += ANSWER_BYTES
        if not self._unwritten or self._unwritten[-1].size + size > MAX_MESSAGE_BYTES:
            self._unwritten.append(_Unwritten(pb.RelayResponse(instance=self._instance)))
            self._instance = ""
        last = self._unwritten[-1]
        last.size += size
        self._unwritten_bytes += size
        self._all_unwritten.add(size)
        self._wake.set()
        return last.message

    async def _write(self, context: Context) -> None:
        while self._unwritten or not self._complete:
            await self._wake.wait()
            self._wake.clear()
            while self._unwritten:
                unwritten = self._unwritten.popleft()
                await self._write_in_time(context, unwritten.message)
                self._unwritten_bytes -= unwritten.size
                self._all_unwritten.remove(unwritten.size)
                self._less.set()

    async def _write_in_time(self, context: Context, message: pb.RelayResponse) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._send_timeout) as timeout:
                with self._all_unwritten.writing(timeout):
                    await context.write(message)
        except TimeoutError as error:
            raise SlowReader(
                f"the stream was not read for {loop.time() - began:.1f} s; its other calls were"
                " cancelled, and answers that were ready are lost"
            ) from error
