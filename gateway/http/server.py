"""The HTTP server: every request, readable or not, gets an answer of one shape."""

import asyncio
import os
import re
import time
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiohttp import hdrs
from aiohttp.web import BaseRequest, RequestHandler, Response, Server, StreamResponse

from gateway.http.answers import REQUEST_ID, problem_answer, sign
from gateway.http.bodies import BodyReader
from gateway.http.context import RequestContext
from gateway.http.problems import ProblemError, internal, refusal
from gateway.http.router import Router
from gateway.http.unreadable import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_URL_BYTES,
    refuse_unreadable,
)
from gateway.metrics import Metrics
from public_json.reasons import Reason

LINGERING_TIME = 5.0
"""Seconds that the rest of a refused body is read for, so that its sender gets to read
the answer."""

DOCS_PATH = "/api/docs"
"""Where a request that has no endpoint is pointed to."""

CALLER_GONE = 499
"""Logged and counted as the status of a request whose caller went away before its answer."""

_REQUEST_ID = re.compile("[!-~]{1,128}")


class Endpoint(Protocol):
    """What answers the requests of a route; `name` is its name in logs and metrics.

    If it takes no body, a request that has one does not reach it.
    """

    @property
    def name(self) -> str: ...

    @property
    def takes_body(self) -> bool: ...

    async def __call__(self, context: RequestContext) -> StreamResponse: ...


class HttpHandler:
    """Finds the endpoint of a request, and turns its refusals into problems.

    An unknown error is logged once, with its traceback, and answered without detail.
    """

    def __init__(self, router: Router[Endpoint], bodies: BodyReader, metrics: Metrics) -> None:
        self._router = router
        self._bodies = bodies
        self._metrics = metrics
        self._log = structlog.get_logger()

    async def __call__(self, request: BaseRequest) -> StreamResponse:
        started = time.perf_counter()
        context = RequestContext(request=request, request_id=request_id_of(request))
        status = CALLER_GONE  # what is left if this task is cancelled
        try:
            response = await self._answer(context)
            status = response.status
        finally:
            self._record(context, context.begun or status, time.perf_counter() - started)
        return response

    def answer_unreadable(self, request: BaseRequest, error: BaseException | None) -> Response:
        """Answer what aiohttp could not read as HTTP; the connection is closed after it."""
        context = RequestContext(request=request, request_id=_new_request_id())
        problem = refuse_unreadable(error).problem
        response = problem_answer(context, problem, {hdrs.CONNECTION: "close"})
        sign(response, context)
        self._record(context, response.status, 0)
        return response

    async def _answer(self, context: RequestContext) -> StreamResponse:
        response: StreamResponse
        try:
            response = await self._dispatch(context)
        except ProblemError as error:
            response = problem_answer(context, error.problem, error.headers)
        except Exception:
            self._log.exception("unexpected error", request_id=context.request_id)
            if context.begun is not None:
                raise  # ends the connection
            response = problem_answer(context, internal())
        if context.begun is None:
            sign(response, context)
        return response

    async def _dispatch(self, context: RequestContext) -> StreamResponse:
        request = context.request
        target = request.raw_path
        if not target.startswith("/"):  # absolute form, RFC 9112 section 3.2.2
            target = request.rel_url.raw_path_qs
        path, _, context.query = target.partition("#")[0].partition("?")
        found = self._router.find(path)
        if found is None:
            raise refusal(Reason.ROUTE_NOT_FOUND, self._nothing_at(path))
        endpoints, context.variables = found
        endpoint = endpoints.get(request.method)
        if endpoint is None:
            allowed = ", ".join(sorted(endpoints))
            raise refusal(
                Reason.METHOD_NOT_ALLOWED, f"This path takes {allowed}.", {hdrs.ALLOW: allowed}
            )
        context.method = endpoint.name
        if not endpoint.takes_body:
            await self._bodies.refuse(request)
        return await endpoint(context)

    def _nothing_at(self, path: str) -> str:
        if path.endswith("/") and self._router.find(path.rstrip("/")) is not None:
            return "There is nothing at this path, but without the slash at its end there is."
        return f"There is nothing at this path; {DOCS_PATH} shows what there is."

    def _record(self, context: RequestContext, status: int, seconds: float) -> None:
        self._metrics.observe(context.method, status, seconds)
        facts = {
            "request_id": context.request_id,
            "organization": context.organization,
            "method": context.method,
            "http_method": context.request.method,
            "status": status,
            "code": context.code,
            "outcome": context.outcome,
            "events": context.events,
            "duration_ms": round(seconds * 1000, 3),
        }
        self._log.info(
            "request", **{name: fact for name, fact in facts.items() if fact is not None}
        )


def request_id_of(request: BaseRequest) -> str:
    """Give the caller's id of the request if it can be passed on as it is, or a new one."""
    match request.headers.getall(REQUEST_ID, ()):
        case [given] if _REQUEST_ID.fullmatch(given):
            return given
    return _new_request_id()


def _new_request_id() -> str:
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection is waited for, in seconds: `idle` until a request begins, then
    `headers` until its head is complete."""

    idle: float
    headers: float


class HttpServer(Server):
    """aiohttp's server without its application and router (docs/decisions/0013).

    A request is cancelled when its caller closes the connection.
    """

    def __init__(
        self, handler: HttpHandler, patience: Patience, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(handler, handler_cancellation=True, loop=loop)
        self._handler = handler
        self._patience = patience

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._handler, self._patience, self._loop)


class _Connection(RequestHandler):
    """A connection whose unreadable requests are answered as every other refusal.

    aiohttp has one time-out for idle connections and for heads that come slowly; here the
    latter have one of their own.
    """

    __slots__ = ("_begun", "_handler", "_head_cut", "_head_timeout")

    def __init__(
        self,
        server: HttpServer,
        handler: HttpHandler,
        patience: Patience,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=patience.idle,
            lingering_time=LINGERING_TIME,
            max_line_size=MAX_URL_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
        )
        self._handler = handler
        self._head_timeout = patience.headers
        self._begun = False
        self._head_cut: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # What has come is a part of a head as long as whoever waits for a request still does,
        # or has not begun to while there is none.
        self._begun = self._begun or bool(self._messages)
        waits = self._waiter is not None and not self._waiter.done()
        if self._begun and not waits:
            self._stop_head_timeout()
        elif self._head_cut is None:
            self._head_cut = self._loop.call_later(self._head_timeout, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timeout()
        super().connection_lost(exc)

    def _stop_head_timeout(self) -> None:
        if self._head_cut is not None:
            self._head_cut.cancel()
            self._head_cut = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,  # noqa: ARG002
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        return self._handler.answer_unreadable(request, exc)
