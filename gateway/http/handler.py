"""Handles requests: endpoint, errors as problems, headers, log line and metrics."""

import os
import re
import time
from typing import TYPE_CHECKING, Protocol

import structlog
from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response, StreamResponse

from gateway.http.bodies import BodyReader
from gateway.http.compression import Compression
from gateway.http.context import RequestContext
from gateway.http.cors import CrossOrigin, is_preflight, preflight_response
from gateway.http.framing import asks_for_upgrade, check_framing
from gateway.http.problems import ProblemError, internal, refusal
from gateway.http.responses import REQUEST_ID, add_common_headers, problem_response
from gateway.http.router import Router
from gateway.http.unreadable import unreadable_error
from gateway.metrics import Metrics
from public_json.reasons import Reason
from runtime.logs import request_logger
from runtime.tracing import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from runtime.spans import Tracer

DOCS_PATH = "/api/docs"
"""Named in the response to a path that does not exist, if it is served."""

CALLER_GONE = 499
"""The status in logs and metrics if the caller closed the connection before the response."""

PREFLIGHT = "preflight"
"""The name of preflights in logs and metrics."""

_REQUEST_ID = re.compile("[!-~]{1,128}")

# Called every few seconds, so they have no spans.
_PROBES = frozenset({"/healthz", "/readyz"})


class Endpoint(Protocol):
    """Responds to the requests of a route; `name` appears in logs and metrics.

    If it takes no body, requests with a body are refused before they reach it.
    """

    @property
    def name(self) -> str: ...

    @property
    def takes_body(self) -> bool: ...

    async def __call__(self, context: RequestContext) -> StreamResponse: ...


class HttpHandler:
    """Passes requests to their endpoints, and responds to errors with problems.

    An unexpected error is logged once, with its traceback; the response has no details.
    """

    def __init__(
        self,
        router: Router[Endpoint],
        bodies: BodyReader,
        metrics: Metrics,
        cross_origin: CrossOrigin | None = None,
        tracer: "Tracer | None" = None,
    ) -> None:
        """Prepare a handler. With `cross_origin`, pages of other origins may call."""
        self._tracer = tracer
        self._router = router
        self._bodies = bodies
        self._metrics = metrics
        self._cross_origin = cross_origin
        self._compression = Compression()
        self._log = structlog.get_logger().bind()
        self._log_request = request_logger()

    async def __call__(self, request: BaseRequest) -> StreamResponse:
        started = time.perf_counter()
        context = self._context(request, request_id_of(request))
        if self._tracer is not None and request.path not in _PROBES:
            headers = request.headers
            context.span = self._tracer.begin(
                request.method, headers.get(TRACEPARENT), headers.get(TRACESTATE)
            )
        status = CALLER_GONE  # if this task is cancelled
        try:
            response = await self._respond(context)
            status = response.status
        finally:
            self._record(context, context.stream_status or status, time.perf_counter() - started)
        return response

    def respond_to_unreadable(self, request: BaseRequest, error: BaseException | None) -> Response:
        """Respond to a request that aiohttp could not parse, and close the connection."""
        context = self._context(request, _new_request_id())
        problem = unreadable_error(error).problem
        response = problem_response(context, problem, {hdrs.CONNECTION: "close"})
        add_common_headers(response, context)
        self._record(context, response.status, 0)
        return response

    def _context(self, request: BaseRequest, request_id: str) -> RequestContext:
        return RequestContext(
            request=request, request_id=request_id, cross_origin=self._cross_origin
        )

    async def _respond(self, context: RequestContext) -> StreamResponse:
        response: StreamResponse
        try:
            response = await self._dispatch(context)
        except ProblemError as error:
            response = problem_response(context, error.problem, error.headers)
        except Exception:
            self._log.exception("unexpected error", request_id=context.request_id)
            if context.stream_status is not None:
                raise  # ends the connection
            response = problem_response(context, internal())
        if asks_for_upgrade(context.request):
            response.force_close()
        if context.stream_status is None:
            add_common_headers(response, context)
            await self._compression.compress(response, context.request)
        return response

    async def _dispatch(self, context: RequestContext) -> StreamResponse:
        request = context.request
        check_framing(request)
        target = request.raw_path
        if not target.startswith("/"):  # absolute form, RFC 9112 section 3.2.2
            target = request.rel_url.raw_path_qs
        path, _, context.query = target.partition("#")[0].partition("?")
        found = self._router.find(path)
        if found is None:
            raise refusal(Reason.ROUTE_NOT_FOUND, self._no_route_detail(path))
        endpoints, context.variables = found
        endpoint = endpoints.get(request.method)
        if endpoint is None:
            allowed = ", ".join(sorted(endpoints))
            detail = f"This path supports {allowed}."
            if is_preflight(request):
                if self._cross_origin is not None and self._cross_origin.allows(request):
                    context.method = PREFLIGHT
                    return preflight_response(endpoints)
                detail = "Pages of this origin may not call: GATEWAY_CORS_ORIGINS does not list it."
            raise refusal(Reason.METHOD_NOT_ALLOWED, detail, {hdrs.ALLOW: allowed})
        context.method = endpoint.name
        if not endpoint.takes_body:
            await self._bodies.refuse(request)
        return await endpoint(context)

    def _no_route_detail(self, path: str) -> str:
        if path.endswith("/") and self._router.find(path.rstrip("/")) is not None:
            return "There is no route with this path; remove the slash at its end."
        if self._router.find(DOCS_PATH) is None:
            return "There is no route with this path."
        return f"There is no route with this path; {DOCS_PATH} lists all routes."

    def _record(self, context: RequestContext, status: int, seconds: float) -> None:
        span = context.span
        self._metrics.observe(context.method, status, seconds, span.exemplar if span else None)
        if span is not None:
            span.rename(context.method)
            span.end(
                error=context.code or str(status) if status >= 500 else None,
                http_method=context.request.method,
                http_status=status,
                request_id=context.request_id,
                organization=context.organization,
                code=context.code,
                outcome=context.outcome,
                events=context.events,
            )
        if self._log_request is None:
            return
        fields: dict[str, object] = {"request_id": context.request_id}
        if context.organization is not None:
            fields["organization"] = context.organization
        fields["method"] = context.method
        fields["http_method"] = context.request.method
        fields["status"] = status
        if context.code is not None:
            fields["code"] = context.code
        if context.outcome is not None:
            fields["outcome"] = context.outcome
        if context.events is not None:
            fields["events"] = context.events
        fields["duration_ms"] = round(seconds * 1e6) / 1000
        if span is not None:
            fields["trace_id"] = span.trace_id
        self._log_request(fields)


def request_id_of(request: BaseRequest) -> str:
    """Return the request id that the caller sent if it is valid, otherwise a new one."""
    match request.headers.getall(REQUEST_ID, ()):
        case [given] if _REQUEST_ID.fullmatch(given):
            return given
    return _new_request_id()


def _new_request_id() -> str:
    return os.urandom(16).hex()
