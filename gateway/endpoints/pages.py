"""Pages that are no RPC: health, the OpenAPI document and its viewer."""

from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.http.context import RequestContext
from gateway.http.handler import DOCS_PATH
from gateway.http.problems import ProblemError, refusal
from gateway.http.responses import json_response
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

    def __init__(self, channel: aio.Channel, service: str) -> None:
        self._stub = health_pb2_grpc.HealthStub(channel)
        self._request = health_pb2.HealthCheckRequest(service=service)

    async def __call__(self, context: RequestContext) -> Response:  # noqa: ARG002
        serving = health_pb2.HealthCheckResponse.SERVING
        try:
            answer = await self._stub.Check(self._request, timeout=READY_TIMEOUT)
        except aio.AioRpcError as error:
            raise _not_ready("The service cannot be reached.") from error
        if answer.status != serving:
            raise _not_ready("The service is not serving at the moment.")
        return json_response(HTTPStatus.OK, b'{"status":"ready"}', _NO_STORE)


def _not_ready(detail: str) -> ProblemError:
    return refusal(Reason.SERVICE_UNAVAILABLE, detail)


class Page:
    """Responds with constant content."""

    takes_body = False

    def __init__(
        self, name: str, body: bytes, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._body = body
        self._headers = {hdrs.CONTENT_TYPE: media_type, **(headers or {})}

    async def __call__(self, context: RequestContext) -> Response:  # noqa: ARG002
        return Response(body=self._body, headers=self._headers)


DOCUMENT_PATH = "/api/openapi.json"

# The viewer loads everything from the gateway. Its bundle sets style attributes and contains
# its icons as `data:` URLs.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "png": "image/png",
}
_VIEWER_FILES = (
    "swagger-ui/swagger-ui-bundle.js",
    "swagger-ui/swagger-ui.css",
    "swagger-ui/favicon-32x32.png",
    "docs.js",
)


def document_page(document: Mapping[str, object]) -> Page:
    """Return the page of the OpenAPI document."""
    return Page(DOCUMENT_PATH, orjson.dumps(document), "application/json")


def viewer_pages() -> dict[str, Page]:
    """Return the pages of the viewer by path. They load nothing from other hosts."""
    static = resources.files("gateway") / "static"
    pages = {DOCS_PATH: "docs.html"}
    pages.update({f"{DOCS_PATH}/{file.rpartition('/')[2]}": file for file in _VIEWER_FILES})
    return {
        path: Page(
            path,
            static.joinpath(*file.split("/")).read_bytes(),
            _MEDIA_TYPES[file.rpartition(".")[2]],
            {
                "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
            },
        )
        for path, file in pages.items()
    }
