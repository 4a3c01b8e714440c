"""Pages that are no RPC: health, the OpenAPI document and its viewer, the calendar."""

import hashlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from importlib import resources
from importlib.resources.abc import Traversable

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.http.conditions import IF_NONE_MATCH, read_tags
from gateway.http.context import RequestContext
from gateway.http.handler import DOCS_PATH
from gateway.http.problems import ProblemError, refusal
from gateway.http.responses import json_response
from gateway.upstream.channels import Connection
from public_json.reasons import Reason

READY_TIMEOUT = 1.0
"""Seconds within which the service must report that it is serving."""

_NO_STORE: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store"}


class LivenessEndpoint:
    """Always responds with 200."""

    name = "/healthz"
    takes_body = False

    async def __call__(self, context: RequestContext) -> Response:  # noqa: ARG002
        return json_response(HTTPStatus.OK, b'{"status":"ok"}', _NO_STORE)


class ReadinessEndpoint:
    """Responds with 200 if the service reports that it is serving, else with 503."""

    name = "/readyz"
    takes_body = False

    def __init__(self, connection: Connection, service: str) -> None:
        self._connection = connection
        self._request = health_pb2.HealthCheckRequest(service=service)

    async def __call__(self, context: RequestContext) -> Response:  # noqa: ARG002
        serving = health_pb2.HealthCheckResponse.SERVING
        try:
            stub = health_pb2_grpc.HealthStub(self._connection.channel)
            answer = await stub.Check(self._request, timeout=READY_TIMEOUT)
        except aio.AioRpcError as error:
            raise _not_ready("The service cannot be reached.") from error
        if answer.status != serving:
            raise _not_ready("The service is not serving at the moment.")
        return json_response(HTTPStatus.OK, b'{"status":"ready"}', _NO_STORE)


def _not_ready(detail: str) -> ProblemError:
    return refusal(Reason.SERVICE_UNAVAILABLE, detail)


class Page:
    """Responds with constant content, or with 304 to a caller that has it."""

    takes_body = False

    def __init__(
        self, name: str, body: bytes, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._body = body
        self._etag = hashlib.sha256(body).hexdigest()[:32]
        self._headers = {
            hdrs.CONTENT_TYPE: media_type,
            hdrs.ETAG: f'"{self._etag}"',
            **(headers or {}),
        }

    async def __call__(self, context: RequestContext) -> Response:
        if self._is_known(context.request.headers.getall(IF_NONE_MATCH, ())):
            return Response(status=HTTPStatus.NOT_MODIFIED, headers=self._headers)
        return Response(body=self._body, headers=self._headers)

    def _is_known(self, conditions: Sequence[str]) -> bool:
        try:
            return bool(conditions) and read_tags(conditions).match_weakly(self._etag)
        except ValueError:
            return False  # not readable, so it names nothing


DOCUMENT_PATH = "/api/openapi.json"
CALENDAR_PATH = "/"
"""The page for the people who run a calendar."""

# A page loads everything from the gateway, and nothing shows it in a frame.
_OWN = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; "
)
# The bundle of the viewer sets style attributes and contains its icons as `data:` URLs.
_VIEWER_POLICY = _OWN + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
# The calendar makes no elements from text, of callers or others (Trusted Types, trusted.js).
_CALENDAR_POLICY = (
    _OWN + "style-src 'self'; img-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types default"
)
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
_STATIC = resources.files("gateway") / "static"


def document_page(document: Mapping[str, object]) -> Page:
    """Return the page of the OpenAPI document."""
    return Page(DOCUMENT_PATH, orjson.dumps(document), "application/json")


def viewer_pages() -> dict[str, Page]:
    """Return the pages of the viewer of the document by path."""
    files = {
        DOCS_PATH: _STATIC / "docs.html",
        f"{DOCS_PATH}/docs.js": _STATIC / "docs.js",
    }
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        files[f"{DOCS_PATH}/{name}"] = _STATIC / "swagger-ui" / name
    return _pages(files, _VIEWER_POLICY)


def calendar_pages() -> dict[str, Page]:
    """Return the calendar and all files that it consists of by path."""
    library = "daypilot-javascript.min.js"
    files = {f"/page/{library}": _STATIC / "daypilot" / library}
    for file in (_STATIC / "page").iterdir():
        files[CALENDAR_PATH if file.name == "index.html" else f"/page/{file.name}"] = file
    return _pages(files, _CALENDAR_POLICY)


def _pages(files: Mapping[str, Traversable], policy: str) -> dict[str, Page]:
    return {
        path: Page(
            path,
            file.read_bytes(),
            _MEDIA_TYPES[file.name.rpartition(".")[2]],
            {
                hdrs.CACHE_CONTROL: "no-cache",
                "Content-Security-Policy": policy,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )
        for path, file in files.items()
    }
