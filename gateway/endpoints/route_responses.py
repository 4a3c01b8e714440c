"""Responses of a route: replies of the service as JSON, with their headers."""

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.endpoints.organizations import resource_location
from gateway.http.compression import etag_as_sent
from gateway.http.context import RequestContext
from gateway.http.problems import refusal
from gateway.http.responses import json_response
from gateway.http.shared_results import SharedResults
from gateway.transcoding.bindings import header_results
from gateway.transcoding.routes import Route
from gateway.upstream.client import REVISION, revision_header
from gateway.upstream.relay import Reply
from public_json.reasons import Reason
from public_json.rendering import MessageRenderer, Render
from runtime.recent import Recent

OUTCOME = "Appointment-Outcome"
ETAG = "ETag"

CACHED_RESPONSES = 512
"""Per route that reads. With their JSON, they use at most some ten megabytes per route, and are
dropped when they are not read for some seconds."""
MAX_CACHED_BYTES = 8 * 1024
MAX_INLINE_BYTES = 64 * 1024
"""Larger replies, such as the availability of many resources, are rendered by the helper, for all
requests that get the same one."""
MAX_SHARED_BYTES = 48 * 1024 * 1024
"""Per route that reads: the two largest replies that the service gives, with their JSON, which is
about four times as large."""

_COMMON_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "private, no-cache"}

_OUTCOMES = {number: name for name, number in Outcome.items()}


Rendered = tuple[bytes | None, dict[str, str]]
"""A body and its headers."""


class RouteResponses:
    """Renders the responses of one route."""

    def __init__(
        self,
        route: Route,
        location: str | None,
        special: Mapping[str, Render],
        render_elsewhere: Callable[[str, bytes], Rendered],
    ) -> None:
        """Prepare a route. `location` is the path where results of its writes are read, if any.

        `render_elsewhere` does what `render` of the route of a name does, without stopping the
        event loop if it is called in a thread.
        """
        output = route.rpc.output_type
        resource = route.response_message
        self._response_body = route.response_body
        self._is_list = bool(header_results(route))
        self._render = MessageRenderer(resource, special, without=header_results(route)).render
        self._has_etag = "etag" in resource.fields_by_name
        self._has_outcome = "outcome" in output.fields_by_name
        self._location = location
        self._read_response: Callable[[bytes], Any] = GetMessageClass(output).FromString
        # Repeated reads often return the same reply.
        self._reads = route.http_method == hdrs.METH_GET
        self._rendered: Recent[bytes, Rendered] = Recent(max_size=CACHED_RESPONSES)
        self._render_shared = SharedResults(
            partial(render_elsewhere, route.name), growth=4, max_bytes=MAX_SHARED_BYTES
        )

    async def of_reply(self, context: RequestContext, message: Message, reply: Reply) -> Response:
        """Return the response for the service's reply to a message. Raises `ProblemError`: 412."""
        headers = {**_COMMON_HEADERS, **revision_header(reply.organization_revision)}
        if not self._has_outcome and self._location is None:
            size = len(reply.response)
            if self._reads and size <= MAX_CACHED_BYTES:
                body, body_headers = self._render_cached(reply.response)
            elif self._reads and size > MAX_INLINE_BYTES:
                body, body_headers = await self._render_shared.of(reply.response)
            else:
                body, body_headers = self.render(reply.response)
            headers.update(body_headers)
            not_modified = self._has_etag and _is_not_modified(context, headers)
            if body is None:  # the service has compared
                return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            if not_modified:
                if ETAG in headers:
                    headers[ETAG] = etag_as_sent(headers[ETAG], body, context.request)
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

    def _render_cached(self, encoded: bytes) -> Rendered:
        rendered = self._rendered.get(encoded)
        if rendered is None:
            rendered = self.render(encoded)
            self._rendered.put(encoded, rendered)
        return rendered

    def render(self, encoded: bytes) -> Rendered:
        """Return the body and its headers. The body of a list that is not modified is None."""
        response = self._read_response(encoded)
        if not self._is_list:
            return self._body(self._resource_of(response))
        headers = {ETAG: f'W/"{response.etag}"'} if response.etag else {}
        return None if response.not_modified else orjson.dumps(self._render(response)), headers

    def _body(self, resource: Any) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
        """Return the body, and the headers that depend on it."""
        etag = resource.etag if self._has_etag else ""
        return orjson.dumps(self._render(resource)), {ETAG: f'"{etag}"'} if etag else {}


def _is_not_modified(context: RequestContext, headers: Mapping[str, str]) -> bool:
    """Evaluate the conditions of a read (RFC 9110, 13.2.2). Raises `ProblemError`: 412."""
    tag = headers.get(ETAG, "")
    is_weak = not tag or tag.startswith("W/")
    etag = tag.removeprefix("W/")[1:-1]
    wanted, known = context.if_match, context.if_none_match
    if wanted is not None and not (wanted.any if is_weak else wanted.match_strongly(etag)):
        raise refusal(
            Reason.ETAG_MISMATCH,
            "A list has a weak entity tag (W/), which never matches in If-Match."
            if is_weak
            else "the appointment has none of the etags in If-Match",
            {name: headers[name] for name in (REVISION, ETAG) if name in headers},
        )
    return known is not None and (known.any or (bool(tag) and known.match_weakly(etag)))
