"""Around every call: request id, deadline, errors to statuses, log line, metrics."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Never

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.calls import Call, current_call
from service.errors import DeadlineExceeded, InvalidFields, MalformedRequest, ServiceError
from service.metrics import Metrics
from service.status import code_of, status_of

REQUEST_ID = "x-request-id"
ACTOR = "x-actor"
MAX_ACTOR = 256
MAX_REQUEST_ID = 128

Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Callable[[Any, Context], Awaitable[Any]]

log = structlog.get_logger()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The only place that aborts a call and logs its end.

    `timeout` (seconds) bounds calls whose caller set no deadline or a later one.
    """

    def __init__(self, service: str, metrics: Metrics, *, timeout: float) -> None:
        self._prefix = f"/{service}/"
        self._metrics = metrics
        self._timeout = timeout

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401  # grpc has no public type for a handler
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._wrap(method.removeprefix(self._prefix), handler.unary_unary),
            request_deserializer=_readable(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _wrap(self, method: str, handle: _Handler) -> _Handler:
        async def handle_call(request: Any, context: Context) -> Any:  # noqa: ANN401
            started = time.perf_counter()
            metadata = dict(context.invocation_metadata() or ())
            call = Call(
                request_id=_request_id(metadata.get(REQUEST_ID)),
                actor=str(metadata.get(ACTOR, "")),
            )
            current_call.set(call)
            failure: BaseException | None = None
            try:
                return await self._handle(handle, request, context, call)
            except BaseException as error:
                failure = error
                if isinstance(error, Exception):
                    await _abort(context, call, error)
                raise
            finally:
                self._report(method, call, time.perf_counter() - started, failure)

        return handle_call

    async def _handle(self, handle: _Handler, request: Any, context: Context, call: Call) -> Any:  # noqa: ANN401
        if isinstance(request, DecodeError):
            raise MalformedRequest(f"the message cannot be read as its type: {request}")
        if len(call.actor) > MAX_ACTOR:
            raise InvalidFields([(ACTOR, f"must have at most {MAX_ACTOR} characters")])
        remaining = context.time_remaining()
        timeout = self._timeout if remaining is None else min(remaining, self._timeout)
        try:
            async with asyncio.timeout(timeout):
                response = await handle(request, context)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "no result in time; whether a write was stored is not known, the same request"
                " may be sent again"
            ) from error
        context.set_trailing_metadata(_trailing_metadata(call))
        return response

    def _report(
        self, method: str, call: Call, seconds: float, failure: BaseException | None
    ) -> None:
        if failure is None:
            code = grpc.StatusCode.OK
        elif isinstance(failure, asyncio.CancelledError):
            code = grpc.StatusCode.CANCELLED
        else:
            code = code_of(failure)  # type: ignore[arg-type]
        self._metrics.request_seconds.labels(method, code.name).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": call.request_id,
            "method": method,
            "code": code.name,
            "duration_ms": round(seconds * 1000, 3),
        }
        if call.organization_id is not None:
            fields["organization"] = call.organization_id
        if call.outcome is not None:
            fields["outcome"] = call.outcome
        if isinstance(failure, ServiceError):
            fields["reason"] = failure.reason
        if code is grpc.StatusCode.INTERNAL:
            log.error("request", exc_info=failure, **fields)
        else:
            log.info("request", **fields)


async def _abort(context: Context, call: Call, error: Exception) -> Never:
    if isinstance(error, ServiceError) and error.organization_revision is not None:
        call.organization_revision = error.organization_revision
    status = status_of(error)
    await context.abort(
        code_of(error),
        status.message,
        (
            *_trailing_metadata(call),
            ("grpc-status-details-bin", status.SerializeToString()),
        ),
    )


def _trailing_metadata(call: Call) -> tuple[tuple[str, str | bytes], ...]:
    metadata = [(REQUEST_ID, call.request_id)]
    if call.organization_revision is not None:
        metadata.append(("organization-revision", str(call.organization_revision)))
    return tuple(metadata)


def _readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Hand a message that cannot be read to the handler as its error.

    Raised here it would be answered as INTERNAL, though it is the caller's to mend.
    """

    def read(data: bytes) -> Any:  # noqa: ANN401
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return read


def _request_id(given: str | bytes | None) -> str:
    """Return the caller's request id if it is fit for a log line, else a new one."""
    if isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID and given.isprintable():
        return given
    return uuid.uuid4().hex
