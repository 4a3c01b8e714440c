"""The endpoint of an RPC: converts an HTTP request to a call of the service."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import hdrs
from aiohttp.web import Response
from google.protobuf.message import Message

from gateway.endpoints.operations import OperationResponses
from gateway.endpoints.organizations import organization_reader
from gateway.endpoints.route_responses import Rendered, RouteResponses
from gateway.endpoints.submission import Submission, read_preferences, submission_kind
from gateway.http.bodies import JSON_TYPES, PATCH_TYPES, BodyReader
from gateway.http.conditions import expected_etags
from gateway.http.context import RequestContext
from gateway.http.in_flight import InFlight
from gateway.http.problems import ProblemError, refusal
from gateway.transcoding.bindings import header_results
from gateway.transcoding.inputs import InputReader, set_condition
from gateway.transcoding.routes import Route
from gateway.upstream.client import ServiceClient
from gateway.upstream.relay import Reply
from public_json.reasons import Reason
from public_json.rendering import Render
from runtime.turns import done_in_turn

MAX_BODY_IN_LOOP = 32 * 1024
"""Bytes. Parsing takes up to 10 ms; that of larger bodies does not stop other requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDependencies:
    """What all endpoints share. The limits are separate."""

    service: ServiceClient
    bodies: BodyReader
    # Bodies being received. Slow senders do not use up the limit of calls.
    receiving: InFlight
    in_flight: InFlight
    # Requests that wait for operations, which takes long.
    waiting: InFlight
    # Of large bodies one is parsed at a time, so that threads get no more than half of the time.
    parsing: asyncio.Lock
    operations: OperationResponses
    special: Mapping[str, Render]
    render_elsewhere: Callable[[str, bytes], Rendered]


class CallEndpoint:
    """Handles the requests of one route."""

    def __init__(
        self,
        route: Route,
        dependencies: CallDependencies,
        location: str | None,
        batch: Route | None,
    ) -> None:
        """Prepare a route. `location` is the path where the results of its writes are read,
        `batch` the route for a batch of them, if any.
        """
        self.name = route.name
        self._rpc_path = route.rpc_path
        bodies = dependencies.bodies
        self._bodies = bodies if route.takes_list else bodies.for_single()
        self._dependencies = dependencies
        self._input = InputReader(route, batch)
        self.takes_body = self._input.takes_body
        self._media_types = PATCH_TYPES if route.patches else JSON_TYPES
        self._responses = RouteResponses(
            route, location, dependencies.special, dependencies.render_elsewhere
        )
        self._organization_of = organization_reader(route.rpc.input_type)
        self._reads = route.http_method == hdrs.METH_GET
        self._lists = bool(header_results(route))
        kind = submission_kind(route.rpc.input_type)
        self._submission = (
            Submission(
                kind,
                dependencies.service,
                self._responses,
                dependencies.operations,
                dependencies.waiting,
            )
            if kind
            else None
        )

    async def __call__(self, context: RequestContext) -> Response:
        """Make the call and render its response. Raises `ProblemError` for every error."""
        body = b""
        if self.takes_body:
            with self._dependencies.receiving:
                body = await self._bodies.read(context.request, self._media_types)
        submission = self._submission
        with self._dependencies.in_flight:
            message = await self._read(context, body)
            context.organization = self._organization_of(message)
            if self._lists and context.if_none_match is not None:
                set_condition(message, context.if_none_match)
            etags = self._expected(context, message)
            if submission is not None:
                preferences = read_preferences(context.request)
            # With several etags, only the result of a synchronous write shows which to try next.
            if submission is None or not preferences.respond_async or len(etags) > 1:
                reply = await self._call(context, message, etags)
                return await self._responses.of_reply(context, message, reply)
            operation = await submission.submit(context, message)
        return await submission.respond(context, operation, preferences)

    async def _read(self, context: RequestContext, body: bytes) -> Message:
        """Read a request, in a thread if it takes so long that other requests would wait."""
        if len(body) <= MAX_BODY_IN_LOOP:
            return self._input.read(context, body)
        return await done_in_turn(
            self._dependencies.parsing,
            partial(asyncio.to_thread, self._input.read, context, body),
        )

    def _expected(self, context: RequestContext, message: Any) -> Sequence[str]:  # noqa: ANN401
        """Return the etags of which a write expects one, and set the first one in its message."""
        if context.if_match is None or self._reads:
            return ()
        body_etag = message.appointment.etag if self.takes_body else ""
        etags = expected_etags(context.if_match, body_etag)
        message.etag = etags[0]
        return etags

    async def _call(
        self,
        context: RequestContext,
        message: Any,  # noqa: ANN401  messages of any type
        etags: Sequence[str],
    ) -> Reply:
        """Call the service with each etag until one matches the stored etag.

        The calls are independent; only the last one can write.
        """
        service = self._dependencies.service
        try:
            for next_etag in etags[1:]:
                try:
                    return await service.call(self._rpc_path, message, context)
                except ProblemError as error:
                    if error.problem.code != Reason.ETAG_MISMATCH:
                        raise
                message.etag = next_etag
            return await service.call(self._rpc_path, message, context)
        except ProblemError as error:
            if context.if_match is None or error.problem.code != Reason.APPOINTMENT_NOT_FOUND:
                raise
            raise refusal(Reason.ETAG_MISMATCH, error.problem.detail, error.headers) from error
