"""What surrounds every call, whichever way it came: deadline, errors, log line, metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status

from service.errors import (
    DeadlineExceeded,
    InvalidFields,
    ServiceError,
    ServiceStopping,
    SlowReader,
)
from service.metrics import Metrics
from service.rpc.context import CallContext
from service.rpc.request_reader import NO_REQUEST, parsed
from service.rpc.status import code_of, status_of

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(slots=True)
class Call:
    """A call under way: what its caller brought, and what the servicer learns of it.

    What is learned is for the log and the answer.
    """

    context: CallContext
    organization_id: str | None = None
    organization_revision: int | None = None
    outcome: str | None = None
    # Sent on a stream so far.
    entries: int | None = None


# Returns a call's request, serialized, once it has come; raises ServiceError.
Receive = Callable[[], Awaitable[bytes]]
# From a method's path and its request to its response, serialized, or its error.
Handle = Callable[[str, Receive, Call], Awaitable[bytes | Status]]
# Sends one response, serialized; waits while the caller reads no further ones.
Send = Callable[[bytes], Awaitable[None]]
# The same for a method with a stream of responses, which end in an error or by themselves.
Stream = Callable[[str, Receive, Call, Send], Awaitable[Status | None]]

# In grpc's own words.
_NOT_FOUND = Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="Method not found!")


def path_of(method: MethodDescriptor) -> str:
    """Return what a method is called by, in gRPC and on a relay: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


@dataclass(frozen=True, slots=True)
class _Method:
    """A method; `answer` makes an awaitable response, or a generator of responses."""

    label: str
    """Its name in logs and metrics."""
    read: Callable[[bytes], Message]
    answer: Callable[[Any, Call], Any]


class CallHandler:
    """Handles calls of the methods of services, by their servicers.

    Methods are called by their paths. Logs and metrics show the name alone, `GetAppointment`;
    where an earlier service has a method of that name, the later one's is shown in full,
    `appointments.v2.AppointmentService.GetAppointment`: a new version beside the first changes
    no series of the first.

    `timeout` (seconds) bounds calls whose caller set no deadline or a later one, counted
    from their opening; of a stream it bounds how long its request may take to come.
    `send_timeout` (seconds) is how long the caller of a stream may take nothing of it.
    """

    def __init__(
        self,
        servicers: Mapping[ServiceDescriptor, object],
        metrics: Metrics,
        *,
        timeout: float,
        send_timeout: float,
    ) -> None:
        self._methods: dict[str, _Method] = {}
        self._streaming_methods: dict[str, _Method] = {}
        labels: set[str] = set()
        for service, servicer in servicers.items():
            for method in service.methods:
                path = path_of(method)
                label = method.full_name if method.name in labels else method.name
                labels.add(label)
                methods = self._streaming_methods if method.server_streaming else self._methods
                # What a servicer of somebody else's service leaves out is not implemented.
                if answer := getattr(servicer, method.name, None):
                    read = GetMessageClass(method.input_type).FromString
                    methods[path] = _Method(label, read, answer)
        self.under_way = 0
        """Calls of `handle` whose request has come, without an answer."""
        # Of the streams under way, which only their callers or `end_streams` end.
        self._ends: set[asyncio.Timeout] = set()
        self._ending = False
        self._seconds_of = cache(
            lambda label, code: metrics.request_seconds.labels(label, code.name)
        )
        self._timeout = timeout
        self._send_timeout = send_timeout

    async def handle(self, method: str, receive: Receive, call: Call) -> bytes | Status:
        """Return the response, serialized, or the error's status; log it and count it."""
        known = self._methods.get(method)
        if known is None:
            return _NOT_FOUND
        return await self._recorded(known.label, call, self._answer(known, receive, call))

    async def stream(self, method: str, receive: Receive, call: Call, send: Send) -> Status | None:
        """Send the responses; return the error's status if it ends with one; log and count it.

        No deadline but the caller's own bounds it.
        """
        known = self._streaming_methods.get(method)
        if known is None:
            return _NOT_FOUND
        return await self._recorded(known.label, call, self._send(known, receive, call, send))

    def end_streams(self) -> None:
        """End every stream at once, those that begin later too."""
        self._ending = True
        for end in self._ends:
            end.reschedule(0)

    async def _recorded(self, label: str, call: Call, answer: Awaitable[T]) -> T | Status:
        started = time.perf_counter()
        code = grpc.StatusCode.CANCELLED  # what is left if this task is cancelled
        failure: Exception | None = None
        try:
            response = await answer
            code = grpc.StatusCode.OK
        except Exception as error:  # noqa: BLE001  # every failure has a status
            failure, code = error, code_of(error)
            if isinstance(error, ServiceError) and error.organization_revision is not None:
                call.organization_revision = error.organization_revision
            return status_of(error)
        finally:
            self._report(label, call, time.perf_counter() - started, code, failure)
        return response

    async def _answer(self, method: _Method, receive: Receive, call: Call) -> bytes:
        timeout = call.context.timeout
        timeout = self._timeout if timeout is None else min(timeout, self._timeout)
        request: bytes | None = None
        try:
            async with asyncio.timeout(timeout):
                request = await receive()
                message = self._admit(method, request, call.context)
                self.under_way += 1
                try:
                    response: Message = await method.answer(message, call)
                finally:
                    self.under_way -= 1
        except TimeoutError as error:
            raise DeadlineExceeded(
                NO_REQUEST
                if request is None
                else "no result in time; whether a write was stored is not known, the same"
                " request may be sent again"
            ) from error
        return response.SerializeToString()

    async def _send(self, method: _Method, receive: Receive, call: Call, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                message = self._admit(method, await receive(), call.context)
        except TimeoutError as error:
            raise DeadlineExceeded(NO_REQUEST) from error
        try:
            async with asyncio.timeout(0 if self._ending else None) as end:
                self._ends.add(end)
                try:
                    responses: AsyncGenerator[Message, None] = method.answer(message, call)
                    async with aclosing(responses):
                        async for response in responses:
                            await self._send_in_time(send, response.SerializeToString())
                finally:
                    self._ends.discard(end)
        except TimeoutError as error:
            raise ServiceStopping(
                "the service stops; call again with the last revision seen"
            ) from error

    def _admit(self, method: _Method, request: bytes, context: CallContext) -> Message:
        """Return the message of a request if its caller may make the call.

        Every call of every method passes here, whichever way it came: a check of credentials
        belongs here.
        """
        message = parsed(method.read, request)
        if context.violations:
            raise InvalidFields(context.violations)
        return message

    async def _send_in_time(self, send: Send, response: bytes) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await send(response)
        except TimeoutError as error:
            raise SlowReader(
                f"nothing of the stream was taken for {self._send_timeout:g} s; call again with the"
                " last revision seen"
            ) from error

    def _report(
        self,
        label: str,
        call: Call,
        seconds: float,
        code: grpc.StatusCode,
        failure: Exception | None,
    ) -> None:
        self._seconds_of(label, code).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": call.context.request_id,
            "method": label,
            "code": code.name,
            "duration_ms": round(seconds * 1000, 3),
        }
        if call.organization_id is not None:
            fields["organization"] = call.organization_id
        if call.outcome is not None:
            fields["outcome"] = call.outcome
        if call.entries is not None:
            fields["entries"] = call.entries
        if isinstance(failure, ServiceError):
            fields["reason"] = failure.reason
        if code is grpc.StatusCode.INTERNAL:
            log.error("request", exc_info=failure, **fields)
        else:
            log.info("request", **fields)
