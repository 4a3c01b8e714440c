"""Handles every call, plain or relayed: deadline, errors, log line and metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status

from runtime.logs import request_logger
from runtime.tracing import current_span
from service import rules
from service.access.principal import Principal
from service.errors import (
    DeadlineExceeded,
    InvalidFields,
    RateLimited,
    RequestTooLarge,
    ServiceError,
    ServiceStopping,
    SlowReader,
)
from service.limits.limiter import RateLimiter
from service.metrics import Metrics
from service.rpc.access import Authenticate, RuleOf, actor_of, permit, rule_of
from service.rpc.context import CallContext
from service.rpc.large_requests import MAX_SINGLE_BYTES, LargeRequests, parts_of
from service.rpc.request_reader import NO_REQUEST, inflated, is_compressed, parsed
from service.rpc.status import code_of, status_of

if TYPE_CHECKING:
    from runtime.spans import Span, Tracer

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """A call in progress: its context, and what the servicer sets for the log and the response.

    `principal` is its caller, set when the call is admitted; None while access control is off.
    """

    context: CallContext
    principal: Principal | None = None
    organization_id: str | None = None
    organization_revision: int | None = None
    outcome: str | None = None
    # The number of entries that a stream has sent.
    entries: int | None = None
    # Whether the response may be compressed.
    compress: bool = True
    # The values of the headers RateLimit-Policy and RateLimit, if there are limits.
    rate_limits: tuple[str, str] | None = None
    # Whether it came on a gateway's stream.
    relayed: bool = False
    # Set if the call is sampled.
    span: "Span | None" = None


# Waits for a call's request and returns it as it came. Raises ServiceError.
Receive = Callable[[], Awaitable[bytes]]
# Handles a call of the method with a path. Returns the serialized response, or the error.
Handle = Callable[[str, Receive, Call], Awaitable[bytes | Status]]
# Sends one serialized response. Waits while flow control blocks, as the caller does not read.
Send = Callable[[bytes], Awaitable[None]]
# Like Handle, for a method that returns a stream. Returns the error that ended it, if any.
Stream = Callable[[str, Receive, Call, Send], Awaitable[Status | None]]

# Seconds between two checks whether the caller of a stream may still read it.
CHECK_INTERVAL = 1.0

# The codes that are no fault of the caller.
_FAULTS = frozenset(
    {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)

# grpcio's own message.
_NOT_FOUND = Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="Method not found!")


def path_of(method: MethodDescriptor) -> str:
    """Return a method's path, used by gRPC and on relay streams: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


@dataclass(frozen=True, slots=True)
class _Method:
    """A method. `answer` returns an awaitable response, or an async generator of responses."""

    label: str
    """The method's name in logs and metrics."""
    max_bytes: int
    """The longest request."""
    max_items: Mapping[int, int]
    """The most elements of the request's repeated fields, by number."""
    read: Callable[[bytes], Message]
    answer: Callable[[Any, Call], Any]
    rule: RuleOf
    """What its callers need while access control is on."""
    cost: Callable[[Any], int]
    """As how many calls a request counts."""


def _cost_of(method: MethodDescriptor) -> Callable[[Any], int]:
    """Return as how many calls a request counts: a batch as its writes.

    A batch of too many, which is refused later, counts as the largest one.
    """
    items = method.input_type.fields_by_name.get("requests")
    if items is None:
        return lambda _: 1
    most = rules.of(items).max_items
    return lambda batch: max(1, min(len(batch.requests), most))


def _inflated(method: _Method, request: bytes) -> bytes:
    request = inflated(request, method.max_bytes)
    if len(request) > method.max_bytes:
        raise RequestTooLarge(
            f"a request of {method.label} must have at most {method.max_bytes} bytes"
        )
    return request


def _longest(method: MethodDescriptor, max_bytes: int) -> int:
    """Return the size of the longest request of a method."""
    has_list = any(field.is_repeated and field.message_type for field in method.input_type.fields)
    return max_bytes if has_list else min(max_bytes, MAX_SINGLE_BYTES)


def _begin_span(tracer: "Tracer", label: str, call: Call) -> "Span | None":
    """Begin the span of a call, for its task. Returns None if the call is not sampled."""
    context = call.context
    if call.relayed and context.traceparent is None:
        return None  # the gateway has decided
    span = tracer.begin(label, context.traceparent, context.tracestate)
    current_span.set(span)
    return span


class CallHandler:
    """Handles calls by passing them to the servicers of their services.

    Methods are identified by their paths. Logs and metrics show the name only, such as
    `GetAppointment`. If an earlier service has a method of the same name, the full name is
    shown, such as `appointments.v2.AppointmentService.GetAppointment`, so that adding a new
    version does not change the metrics of the first.

    `timeout` (seconds) bounds calls without a deadline or with a later one, from the moment
    they are opened. For a stream it bounds only the wait for the request. `send_timeout`
    (seconds) bounds the wait for the caller of a stream to read a response.

    A request has at most `max_bytes` if it has a list of messages, as a batch has, otherwise at
    most MAX_SINGLE_BYTES.

    `authenticate` returns the caller of a call; None switches access control off. Raises
    RuleMissing if a method has no rule of access, also while it is off.
    """

    def __init__(
        self,
        servicers: Mapping[ServiceDescriptor, object],
        metrics: Metrics,
        *,
        timeout: float,
        send_timeout: float,
        max_bytes: int,
        authenticate: Authenticate | None = None,
        rate_limiter: RateLimiter | None = None,
        tracer: "Tracer | None" = None,
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
                # The servicer of a standard service may implement only some of its methods.
                if answer := getattr(servicer, method.name, None):
                    read = GetMessageClass(method.input_type).FromString
                    methods[path] = _Method(
                        label=label,
                        max_bytes=_longest(method, max_bytes),
                        max_items=rules.most_items(method.input_type),
                        read=read,
                        answer=answer,
                        rule=rule_of(method),
                        cost=_cost_of(method),
                    )
        self._large = LargeRequests()
        self.under_way = 0
        """The number of calls of `handle` that have a request and no response yet."""
        # One for each open stream. `end_streams` makes them expire.
        self._stream_timeouts: set[asyncio.Timeout] = set()
        self._ending = False
        self._seconds_of = cache(
            lambda label, code: metrics.request_seconds.labels(label, code.name)
        )
        self._authenticate = authenticate
        self._rate_limiter = rate_limiter
        self._tracer = tracer
        self._timeout = timeout
        self._send_timeout = send_timeout
        self._log = structlog.get_logger().bind()
        self._log_request = request_logger()

    async def handle(self, method: str, receive: Receive, call: Call) -> bytes | Status:
        """Return the serialized response, or the error's status. Logs and counts the call."""
        known = self._methods.get(method)
        if known is None:
            return _NOT_FOUND
        return await self._recorded(known.label, call, self._answer(known, receive, call))

    async def stream(self, method: str, receive: Receive, call: Call, send: Send) -> Status | None:
        """Send the responses. Returns the status of the error that ended the stream, if any.

        Logs and counts the call. Only the caller's deadline bounds it.
        """
        known = self._streaming_methods.get(method)
        if known is None:
            return _NOT_FOUND
        return await self._recorded(known.label, call, self._send(known, receive, call, send))

    def end_streams(self) -> None:
        """End all streams with ServiceStopping, including those that are opened later."""
        self._ending = True
        for timeout in self._stream_timeouts:
            timeout.reschedule(0)

    async def _recorded(self, label: str, call: Call, answer: Awaitable[T]) -> T | Status:
        started = time.perf_counter()
        code = grpc.StatusCode.CANCELLED  # if this task is cancelled
        failure: Exception | None = None
        if self._tracer is not None:
            call.span = _begin_span(self._tracer, label, call)
        try:
            response = await answer
            code = grpc.StatusCode.OK
        except Exception as error:  # noqa: BLE001  # every failure has a status
            failure, code = error, code_of(error)
            if isinstance(error, ServiceError) and error.organization_revision is not None:
                call.organization_revision = error.organization_revision
            if isinstance(error, RateLimited):
                call.rate_limits = error.headers
            return status_of(error)
        finally:
            self._report(label, call, time.perf_counter() - started, code, failure)
            # The error has this frame, and the frames that have the request. Without a cycle both
            # are freed now, and not when garbage is collected.
            failure = None
        return response

    async def _answer(self, method: _Method, receive: Receive, call: Call) -> bytes:
        timeout = call.context.timeout
        timeout = self._timeout if timeout is None else min(timeout, self._timeout)
        message: Message | None = None
        try:
            async with asyncio.timeout(timeout):
                message = await self._admit(method, receive, call)
                self.under_way += 1
                try:
                    response: Message = await method.answer(message, call)
                finally:
                    self.under_way -= 1
        except TimeoutError as error:
            raise DeadlineExceeded(
                NO_REQUEST
                if message is None
                else "no result in time; whether a write was stored is not known, the same"
                " request may be sent again"
            ) from error
        return response.SerializeToString()

    async def _send(self, method: _Method, receive: Receive, call: Call, send: Send) -> None:
        current_span.set(None)  # a stream can last for an hour, and would have a span per read
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._admit(method, receive, call)
        except TimeoutError as error:
            raise DeadlineExceeded(NO_REQUEST) from error
        try:
            async with asyncio.timeout(0 if self._ending else None) as timeout:
                self._stream_timeouts.add(timeout)
                try:
                    responses: AsyncGenerator[Message, None] = method.answer(message, call)
                    async with self._permitted(method, message, call), aclosing(responses):
                        async for response in responses:
                            await self._send_in_time(send, response.SerializeToString())
                finally:
                    self._stream_timeouts.discard(timeout)
        except TimeoutError as error:
            raise ServiceStopping(
                "the service is stopping; call again with the last revision seen"
            ) from error

    async def _admit(self, method: _Method, receive: Receive, call: Call) -> Message:
        """Receive a request and check that its caller may make the call.

        Every call of every method passes here, plain or relayed. The request of an unknown
        caller is not read. Sets the call's principal, and the actor to what it may be.

        Raises Unauthenticated, PermissionDenied, RateLimited, InvalidFields, and the errors of
        `_read`.
        """
        if self._authenticate is not None:
            call.principal = await self._authenticate(call.context)
        message = await self._read(method, await receive())
        rule = method.rule(message)
        if call.principal is not None:
            permit(rule, call.principal, message)
            actor = actor_of(call.principal, call.context.actor)
            call.context = call.context._replace(actor=actor)
        if self._rate_limiter is not None:
            call.rate_limits = self._rate_limiter.admit(
                credential=call.principal.credential_id if call.principal else None,
                organization=next(iter(rule.organizations(message)), None),
                cost=method.cost(message),
            )
        if call.context.violations:
            raise InvalidFields(call.context.violations)
        return message

    async def _read(self, method: _Method, request: bytes) -> Message:
        """Parse a request, a large one when it is its turn.

        Raises Overloaded, RequestTooLarge or MalformedRequest.
        """
        if method.max_bytes <= MAX_SINGLE_BYTES or (
            len(request) <= MAX_SINGLE_BYTES and not is_compressed(request)
        ):
            return parsed(method.read, _inflated(method, request))
        message = method.read(b"")
        async with self._large.turn() as turn:
            for part in parts_of(_inflated(method, request), method.max_items):
                parsed(message.MergeFromString, part)
                await turn.after_part()
        return message

    @asynccontextmanager
    async def _permitted(
        self, method: _Method, message: Message, call: Call
    ) -> AsyncIterator[None]:
        """End the block soon after its caller may no longer make the call.

        That is when the credential has expired, was revoked, or cannot be checked any more.
        Raises the error that a new call would get.
        """
        authenticate = self._authenticate
        if authenticate is None:
            yield
            return
        refusal: Exception | None = None

        async def check() -> None:
            nonlocal refusal
            while refusal is None:
                await asyncio.sleep(CHECK_INTERVAL)
                try:
                    permit(method.rule(message), await authenticate(call.context), message)
                except Exception as error:  # noqa: BLE001  # reported as that of the call
                    refusal = error
                    ended.reschedule(0)

        try:
            async with asyncio.timeout(None) as ended:
                checks = asyncio.create_task(check())
                try:
                    yield
                finally:
                    checks.cancel()
        except TimeoutError:
            if refusal is not None:
                raise refusal from None
            raise

    async def _send_in_time(self, send: Send, response: bytes) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await send(response)
        except TimeoutError as error:
            raise SlowReader(
                f"the stream was not read for {self._send_timeout:g} s; call again with the"
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
        span = call.span
        self._seconds_of(label, code).observe(seconds, span.exemplar if span else None)
        reason = failure.reason if isinstance(failure, ServiceError) else None
        if span is not None:
            span.end(
                error=code.name if code in _FAULTS else None,
                grpc_code=code.name,
                request_id=call.context.request_id,
                organization=call.organization_id,
                outcome=call.outcome,
                entries=call.entries,
                reason=reason,
            )
        is_error = code is grpc.StatusCode.INTERNAL
        if not is_error and self._log_request is None:
            return
        fields: dict[str, Any] = {
            "request_id": call.context.request_id,
            "method": label,
            "code": code.name,
            "duration_ms": round(seconds * 1e6) / 1000,
        }
        if call.principal is not None:
            fields["credential"] = call.principal.credential_id
        if call.organization_id is not None:
            fields["organization"] = call.organization_id
        if call.outcome is not None:
            fields["outcome"] = call.outcome
        if call.entries is not None:
            fields["entries"] = call.entries
        if reason is not None:
            fields["reason"] = reason
        if span is not None:
            fields["trace_id"] = span.trace_id
        if is_error:
            self._log.error("request", exc_info=failure, **fields)
        elif self._log_request is not None:
            self._log_request(fields)
