"""Responses of a route: replies of the service as JSON, with their headers."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.endpoints.organizations import resource_location
from gateway.http.context import RequestContext
from gateway.http.problems import refusal
from gateway.http.responses import json_response
from gateway.transcoding.routes import Route
from gateway.upstream.client import REVISION, revision_header
from gateway.upstream.relay import Reply
from public_json.reasons import Reason
from public_json.rendering import MessageRenderer, Render

OUTCOME = "Appointment-Outcome"
ETAG = "ETag"

CACHED_RESPONSES = 512
"""Per route that reads. With their JSON, they use at most some ten megabytes per route."""
MAX_CACHED_BYTES = 8 * 1024

_COMMON_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "private, no-cache"}

_OUTCOMES = {number: name for name, number in Outcome.items()}


class RouteResponses:
    """Renders the responses of one route."""

    def __init__(self, route: Route, location: str | None, special: Mapping[str, Render]) -> None:
        """Prepare a route. `location` is the path where results of its writes are read, if any."""
        output = route.rpc.output_type
        resource = route.response_message
        self._response_body = route.response_body
        self._render = MessageRenderer(resource, special).render
        self._has_etag = "etag" in resource.fields_by_name
        self._has_outcome = "outcome" in output.fields_by_name
        self._location = location
        self._read_response: Callable[[bytes], Any] = GetMessageClass(output).FromString
        # Repeated reads often return the same reply.
        self._reads = route.http_method == hdrs.METH_GET
        self._render_cached = lru_cache(CACHED_RESPONSES)(self._render_response)

    def of_reply(self, context: RequestContext, message: Message, reply: Reply) -> Response:
        """Return the response for the service's reply to a message. Raises `ProblemError`: 412."""
        headers = {**_COMMON_HEADERS, **revision_header(reply.organization_revision)}
        if not self._has_outcome and self._location is None:
            if self._reads and len(reply.response) <= MAX_CACHED_BYTES:
                body, body_headers = self._render_cached(reply.response)
            else:
                body, body_headers = self._render_response(reply.response)
            headers.update(body_headers)
            if self._has_etag and _is_not_modified(context, headers):
                return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            return json_response(HTTPStatus.OK, body, headers)
        response = self._read_response(reply.response)
        resource = self._resource_of(response)
        if not self._has_outcome:  # only creations have a location but no outcome
            headers[hdrs.LOCATION] = resource_location(
                self._location or "", resource.id, resource.organization_id
            )
            body, body_headers = self._body(resource)
            return json_response(HTTPStatus.CREATED, body, {**headers, **body_headers})
        dry_run = getattr(message, "validate_only", False)
        return self.of_write(context, resource, response.outcome, headers, dry_run)

    def of_write(
        self,
        context: RequestContext,
        resource: Any,  # noqa: ANN401  messages of any type
        outcome: Outcome.ValueType,
        headers: dict[str, str],
        dry_run: bool = False,
    ) -> Response:
        """Return the response of a write, or of a dry run."""
        headers[OUTCOME] = context.outcome = _OUTCOMES[outcome]
        created = outcome == Outcome.CREATED and not dry_run
        if self._location is not None and not dry_run:
            headers[hdrs.LOCATION] = resource_location(
                self._location, resource.id, resource.organization_id
            )
        body, body_headers = self._body(resource)
        status = HTTPStatus.CREATED if created else HTTPStatus.OK
        return json_response(status, body, {**headers, **body_headers})

    def _resource_of(self, response: Any) -> Any:  # noqa: ANN401  messages of any type
        return getattr(response, self._response_body) if self._response_body else response

    def _render_response(self, encoded: bytes) -> tuple[bytes, dict[str, str]]:
        return self._body(self._resource_of(self._read_response(encoded)))

    def _body(self, resource: Any) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
        """Return the body, and the headers that depend on it."""
        etag = resource.etag if self._has_etag else ""
        return orjson.dumps(self._render(resource)), {ETAG: f'"{etag}"'} if etag else {}


def _is_not_modified(context: RequestContext, headers: Mapping[str, str]) -> bool:
    """Evaluate the conditions of a read (RFC 9110, 13.2.2). Raises `ProblemError`: 412."""
    etag = headers[ETAG][1:-1]
    if context.if_match is not None and not context.if_match.match_strongly(etag):
        raise refusal(
            Reason.ETAG_MISMATCH,
            "the appointment has none of the etags in If-Match",
            {name: headers[name] for name in (REVISION, ETAG)},
        )
    return context.if_none_match is not None and context.if_none_match.match_weakly(etag)
