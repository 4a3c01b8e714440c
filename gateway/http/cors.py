"""Cross-origin requests: lets the pages of other origins call (WHATWG Fetch, section 3.3)."""

from collections.abc import Collection
from http import HTTPStatus

from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response, StreamResponse

from gateway.http.negotiation import add_vary

ANY_ORIGIN = "*"

REQUEST_HEADERS = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Traceparent",
    "Tracestate",
    "X-Actor",
    "X-Request-Id",
)
"""The headers of the API that a page may send."""
RESPONSE_HEADERS = (
    "Accept-Patch",
    "Allow",
    "Appointment-Outcome",
    "ETag",
    "Location",
    "Organization-Revision",
    "Preference-Applied",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
)
"""The headers of the API that a page may read."""

MAX_AGE = 7200
"""Seconds for which a browser may remember a preflight; Chromium takes no more."""


class CrossOrigin:
    """Allows the pages of some origins to call, or of all (`*`).

    Responses to other origins lack the headers, so browsers do not show them to pages. Credentials
    that a browser adds by itself, such as cookies, are never allowed; the API uses none.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def add_headers(self, response: StreamResponse, request: BaseRequest) -> None:
        """Add the headers that every response needs, errors included."""
        if ANY_ORIGIN in self._origins:
            allowed = ANY_ORIGIN
        else:
            # Without this, a cache could give one origin the response for another.
            add_vary(response, hdrs.ORIGIN)
            allowed = request.headers.get(hdrs.ORIGIN, "")
            if allowed not in self._origins:
                return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = allowed
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def allows(self, request: BaseRequest) -> bool:
        """Return whether the pages of the request's origin may call."""
        return not self._origins.isdisjoint({ANY_ORIGIN, request.headers.get(hdrs.ORIGIN, "")})


def is_preflight(request: BaseRequest) -> bool:
    """Return whether a browser asks if a page may make a request."""
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def preflight_response(methods: Collection[str]) -> Response:
    """Return the response to the preflight of a request for a path with these methods."""
    return Response(
        status=HTTPStatus.NO_CONTENT,
        headers={
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(methods)),
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE),
        },
    )


_ALLOWED = ", ".join(REQUEST_HEADERS)
_EXPOSED = ", ".join(RESPONSE_HEADERS)
