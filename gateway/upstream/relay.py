"""Calls the service over one stream per instance of it, which many requests share.

While a message is being written, further calls wait. Then all waiting calls are sent as the
next message. There is no timer: a single call is sent at once, and messages grow under load.

Calls of an organization go to the same instance, from every gateway, so that its writes share
batches. Each organization has one of LANES lanes. A lane opens a stream, for which gRPC chooses the
address by the number of the lane. If that is an instance to which there is a stream already, the
lane continues with that one.

gRPC ends a stream that reaches a server in the moment in which it stops, and does not tell whether
the service has read from it. So calls are sent when the service has answered a greeting on their
stream. Calls that were not sent when a stream ends are made on another one.
"""

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple
from zlib import crc32

import structlog
from appointments.relay.v1 import relay_pb2 as pb
from appointments.relay.v1.relay_pb2_grpc import RelayServiceStub
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio
from prometheus_client import Counter

from gateway.http.context import RateLimits
from gateway.upstream.channels import LANE, Connection
from gateway.upstream.metadata import Metadata
from runtime.backoff import log_unexpected

MAX_MESSAGE_BYTES = 1024 * 1024
"""Maximum size of a message with more than one call."""
MAX_MESSAGE_CALLS = 1000
"""Maximum number of calls in a message, and of calls that it cancels; the service refuses a
message with more than ten times as many."""
ENVELOPE_BYTES = 256
"""Maximum size of the other fields of a call, without its request and metadata."""
LANES = 64
"""With more, organizations are spread more evenly over few addresses. With fewer, fewer streams are
opened when one ends."""
PAUSES = (0.0, 0.0, 0.02, 0.1)
"""Seconds to wait before each stream on which a call is made, if the one before ended first."""
# Services of all versions answer it at once, as a call of an unknown method.
_GREETING = pb.RelayRequest(calls=[pb.Call()])


class CallError(Exception):
    """A call ended with this status instead of a response."""

    def __init__(
        self,
        status: Status,
        organization_revision: int | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(status.message)
        self.status = status
        self.organization_revision = organization_revision
        self.rate_limits = rate_limits


class MessageTooLargeError(Exception):
    """A call is larger than the service accepts."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"more than {max_bytes} bytes")
        self.max_bytes = max_bytes


class Reply(NamedTuple):
    """A serialized response, and the organization's revision if the service sent it."""

    response: bytes
    organization_revision: int | None
    rate_limits: RateLimits | None


class Relay:
    """Calls the service. The first call of a lane opens a stream, as does the first after its end.

    `timeout` (seconds) limits the wait for the answer to a call.
    """

    def __init__(
        self, connection: Connection, *, timeout: float, max_message_bytes: int, errors: Counter
    ) -> None:
        self._connection = connection
        self._timeout = timeout
        self._max_message_bytes = max_message_bytes
        self._errors = errors
        self._lanes: list[_Stream | None] = [None] * LANES
        self._instances: dict[str, _Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def call(
        self,
        method: str,
        request: bytes,
        metadata: Metadata,
        *,
        organization: str,
        wait: float = 0,
    ) -> Reply:
        """Call a method by its path.

        `wait` seconds are added to the timeout. The call is cancelled when the timeout expires
        or the awaiting task is cancelled. Raises `CallError`: the status of the service,
        DEADLINE_EXCEEDED, or UNAVAILABLE if the stream broke after the call was sent, or as many
        streams as PAUSES before. Raises `MessageTooLargeError` before anything is sent.
        """
        size = ENVELOPE_BYTES + len(request)
        for key, value in metadata:
            size += len(key) + len(value)
        if size > self._max_message_bytes:
            raise MessageTooLargeError(self._max_message_bytes)
        deadline = asyncio.get_running_loop().time() + self._timeout + wait
        answer = await self._answer_to(
            _Call(method, request, metadata, size, deadline), crc32(organization.encode()) % LANES
        )
        revision = (
            answer.organization_revision if answer.HasField("organization_revision") else None
        )
        limits = (answer.rate_limit_policy, answer.rate_limit) if answer.rate_limit else None
        if answer.HasField("response"):
            return Reply(answer.response, revision, limits)
        raise CallError(answer.error, revision, limits)

    async def _answer_to(self, call: "_Call", lane: int) -> pb.Answer:
        for pause in PAUSES:
            if pause:
                await asyncio.sleep(pause)
            stream = self._lanes[lane]
            if stream is None or not stream.open:
                if self._closed:
                    break
                stream = self._open(lane)
            answer = await stream.call(call)
            if answer is not None:
                return answer
        raise CallError(Status(code=StatusCode.UNAVAILABLE.value[0]))

    def _open(self, lane: int) -> "_Stream":
        stream = self._lanes[lane] = _Stream(
            RelayServiceStub(self._connection.channel).Relay(metadata=((LANE, str(lane)),)),
            min(MAX_MESSAGE_BYTES, self._max_message_bytes),
            self._errors,
        )
        task = asyncio.create_task(self._run(stream, lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _run(self, stream: "_Stream", lane: int) -> None:
        reached: str | None = None

        def share(instance: str) -> None:
            """Use one stream for all lanes that reach an instance."""
            nonlocal reached
            shared = self._instances.get(instance)
            if shared is None or not shared.open:
                self._instances[instance] = stream
                reached = instance
            else:
                self._lanes[lane] = shared
                stream.finish()

        self._connection.when_replaced.add(stream.finish)
        try:
            await stream.run(share)
        finally:
            self._connection.when_replaced.discard(stream.finish)
            if reached is not None and self._instances.get(reached) is stream:
                del self._instances[reached]

    async def close(self) -> None:
        """End the streams. Unanswered calls fail with UNAVAILABLE."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The task of a stream that was just opened has not begun, so it does not end the stream.
        for stream in self._lanes:
            if stream is not None:
                stream.end()


class _Call(NamedTuple):
    method: str
    request: bytes
    metadata: Metadata
    size: int
    """An upper bound, in bytes."""
    deadline: float
    """By the clock of the event loop."""


class _Stream:
    """A stream, with its unsent and unanswered calls."""

    def __init__(
        self,
        stream: aio.StreamStreamCall[pb.RelayRequest, pb.RelayResponse],
        max_message_bytes: int,
        errors: Counter,
    ) -> None:
        self.open = True
        """Whether it accepts further calls."""
        self._stream = stream
        self._max_message_bytes = max_message_bytes
        self._errors = errors
        self._last_number = 0
        self._unsent: dict[int, _Call] = {}
        self._unanswered: dict[int, asyncio.Future[pb.Answer | None]] = {}
        self._cancelled: list[int] = []
        self._wake = asyncio.Event()
        # Set by the first message of the service, which answers the greeting.
        self._greeted = asyncio.Event()

    async def call(self, call: _Call) -> pb.Answer | None:
        """Return the answer, or None if the stream ended before the call was sent.

        Raises `CallError`: DEADLINE_EXCEEDED, or UNAVAILABLE if it ended afterwards.
        """
        loop = asyncio.get_running_loop()
        self._last_number = number = self._last_number + 1
        answer: asyncio.Future[pb.Answer | None] = loop.create_future()
        self._unanswered[number] = answer
        self._unsent[number] = call
        self._wake.set()
        deadline = loop.call_at(call.deadline, _fail, answer, StatusCode.DEADLINE_EXCEEDED)
        try:
            return await answer
        finally:
            deadline.cancel()
            # The timeout expired or the awaiting task was cancelled.
            if (
                self._unanswered.pop(number, None) is not None
                and self._unsent.pop(number, None) is None
            ):
                self._cancelled.append(number)
                self._wake.set()

    def finish(self) -> None:
        """Accept no further calls, and end when the others are answered.

        A stream that the service has not answered yet ends at once: nothing was sent on it.
        """
        self.open = False
        self._wake.set()
        if not self._greeted.is_set():
            self._stream.cancel()

    async def run(self, reached: Callable[[str], None]) -> None:
        """Send calls and receive answers until the stream ends.

        Calls `reached` with the instance of the service that it has reached. An unexpected error
        in sending or receiving also ends it.
        """
        writer = asyncio.create_task(self._write())
        try:
            await self._read(reached)
        except aio.AioRpcError as error:
            structlog.get_logger().warning(
                "relay ended",
                code=error.code().name,
                error=error.details(),
                calls=len(self._unanswered) - len(self._unsent),
            )
        except Exception as error:  # noqa: BLE001  the next call opens a new stream
            log_unexpected("relay calls", error, self._errors)
            self._unsent.clear()  # one of them may be the cause
        finally:
            writer.cancel()
            self.end()

    def end(self) -> None:
        """Fail the calls that were sent, and give back the others."""
        self.open = False
        self._stream.cancel()
        for number, answer in self._unanswered.items():
            if number not in self._unsent:
                _fail(answer, StatusCode.UNAVAILABLE)
            elif not answer.done():
                answer.set_result(None)
        self._unanswered.clear()

    async def _read(self, reached: Callable[[str], None]) -> None:
        while isinstance(message := await self._stream.read(), pb.RelayResponse):
            self._greeted.set()
            if message.instance and self.open:
                reached(message.instance)
            for answer in message.answers:
                waiting = self._unanswered.pop(answer.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            if message.closing or not self.open:
                self.finish()

    async def _write(self) -> None:
        try:
            await self._stream.write(_GREETING)
            await self._greeted.wait()
            while self.open or self._unanswered:
                await self._wake.wait()
                self._wake.clear()
                while self._unsent or self._cancelled:
                    message = self._next_message()
                    if message.calls or message.cancelled:
                        await self._stream.write(message)
            await self._stream.done_writing()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream has ended; `_read` raises the error
        except Exception as error:  # noqa: BLE001  the next call opens a new stream
            log_unexpected("relay calls", error, self._errors)
            self._unsent.clear()  # one of them may be the cause
            self._stream.cancel()
        finally:
            self.open = False

    def _next_message(self) -> pb.RelayRequest:
        message = pb.RelayRequest(cancelled=self._cancelled[:MAX_MESSAGE_CALLS])
        del self._cancelled[:MAX_MESSAGE_CALLS]
        room = self._max_message_bytes - message.ByteSize()
        now = asyncio.get_running_loop().time()
        taken: list[int] = []
        for number, call in islice(self._unsent.items(), MAX_MESSAGE_CALLS):
            if self._unanswered[number].done() or call.deadline <= now:  # nobody waits for it
                taken.append(number)
                continue
            room -= call.size
            if room < 0 and (message.calls or message.cancelled):
                break
            taken.append(number)
            added = message.calls.add(
                number=number,
                method=call.method,
                request=call.request,
                timeout_ms=int((call.deadline - now) * 1000),
            )
            for key, value in call.metadata:
                if isinstance(value, bytes):
                    added.metadata.add(key=key, binary=value)
                else:
                    added.metadata.add(key=key, text=value)
        for number in taken:
            del self._unsent[number]
        return message


def _fail(answer: asyncio.Future[pb.Answer | None], code: StatusCode) -> None:
    if not answer.done():
        answer.set_exception(CallError(Status(code=code.value[0])))
