"""HTTP responses: JSON, problems, and the headers of every response."""

from collections.abc import Mapping

import orjson
from aiohttp import hdrs
from aiohttp.web import Response, StreamResponse

from gateway.http.context import RequestContext
from gateway.http.credentials import add_challenge
from gateway.http.problems import MEDIA_TYPE, Problem

REQUEST_ID = "X-Request-Id"
# draft-ietf-httpapi-ratelimit-headers
RATE_LIMIT_POLICY = "RateLimit-Policy"
RATE_LIMIT = "RateLimit"


def json_response(status: int, body: bytes, headers: Mapping[str, str]) -> Response:
    """Return a response with this JSON text."""
    return Response(
        status=status,
        body=body,
        headers={hdrs.CONTENT_TYPE: "application/json", **headers},
    )


def add_common_headers(response: StreamResponse, context: RequestContext) -> None:
    """Add the headers of every response."""
    response.headers[REQUEST_ID] = context.request_id
    response.headers[hdrs.SERVER] = "appointments"  # aiohttp would disclose its version
    if context.rate_limits is not None:
        response.headers[RATE_LIMIT_POLICY], response.headers[RATE_LIMIT] = context.rate_limits
    if context.cross_origin is not None:
        context.cross_origin.add_headers(response, context.request)


def problem_response(
    context: RequestContext, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response of a problem. The header `Connection: close` closes the connection."""
    context.code = problem.code
    response = Response(
        status=problem.status,
        reason=problem.status.phrase,
        body=orjson.dumps(problem.body(context.request_id)),
        headers={hdrs.CONTENT_TYPE: MEDIA_TYPE, hdrs.CACHE_CONTROL: "no-store"},
    )
    response.headers.update(headers or {})
    add_challenge(response, context, problem)
    if problem.retry_after is not None:
        response.headers[hdrs.RETRY_AFTER] = str(problem.retry_after)
    if response.headers.get(hdrs.CONNECTION) == "close":
        response.force_close()
    return response
