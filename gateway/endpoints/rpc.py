"""The endpoint of an RPC: one HTTP request becomes one call of the service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs
from aiohttp.web import Response
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from gateway.endpoints.operations import OperationAnswers
from gateway.endpoints.organizations import location_of, organization_reader
from gateway.endpoints.submission import Submission, read_preferences, submission_kind
from gateway.http.answers import json_answer
from gateway.http.bodies import BodyReader
from gateway.http.conditions import expected_etags
from gateway.http.exchange import Exchange
from gateway.http.in_flight import InFlight
from gateway.http.problems import ProblemError, refusal
from gateway.transcoding.inputs import InputReader
from gateway.transcoding.routes import Route
from gateway.upstream.client import REVISION, ServiceCaller, revision_header
from gateway.upstream.relay import Reply
from public_json.reasons import Reason
from public_json.rendering import MessageRenderer, Render

OUTCOME = "Appointment-Outcome"
ETAG = "ETag"

CACHED_RESPONSES = 512
"""Of each route that reads; with their JSON at most some ten megabytes each."""
MAX_CACHED_BYTES = 8 * 1024

_COMMON_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "private, no-cache"}

_OUTCOMES = {number: name for name, number in Outcome.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What all endpoints share; sizes are in bytes."""

    service: ServiceCaller
    bodies: BodyReader
    # Apart from the calls, so that callers who send slowly do not keep others out.
    receiving: InFlight
    in_flight: InFlight
    # Apart from both, since it takes long: for the end of operations.
    waiting: InFlight
    operations: OperationAnswers
    special: Mapping[str, Render]


class CallEndpoint:
    """Answers the requests of one route."""

    def __init__(
        self, route: Route, settings: CallSettings, location: str | None, batch: Route | None
    ) -> None:
        """Prepare the route; `location` is the path under which its writes are read, if any,
        `batch` the route that takes several of them.
        """
        output = route.rpc.output_type
        self.name = route.name
        self._rpc_path = route.rpc_path
        self._settings = settings
        self._input = InputReader(route, batch)
        self.takes_body = self._input.takes_body
        self._response_body = route.response_body
        shown = route.answer_message
        self._render = MessageRenderer(shown, settings.special).render
        self._has_etag = "etag" in shown.fields_by_name
        self._has_outcome = "outcome" in output.fields_by_name
        self._location = location
        self._organization_of = organization_reader(route.rpc.input_type)
        self._read_response: Callable[[bytes], Any] = GetMessageClass(output).FromString
        # What is read again and again is often the same.
        self._reads = route.http_method == hdrs.METH_GET
        self._render_cached = lru_cache(CACHED_RESPONSES)(self._render_response)
        kind = submission_kind(route.rpc.input_type)
        self._submission = (
            Submission(kind, settings.service, self._written, settings.operations, settings.waiting)
            if kind
            else None
        )

    async def __call__(self, exchange: Exchange) -> Response:
        """Make the call and render its answer. Raises `ProblemError` for every refusal."""
        body = b""
        if self.takes_body:
            with self._settings.receiving:
                body = await self._settings.bodies.read(exchange.request)
        submission = self._submission
        with self._settings.in_flight:
            message = self._input.read(exchange, body)
            exchange.organization = self._organization_of(message)
            etags = self._expected(exchange, message)
            if submission is not None:
                preferences = read_preferences(exchange.request)
            # Of several etags only the answer to a write at once tells which to try next.
            if submission is None or not preferences.respond_async or len(etags) > 1:
                reply = await self._call(exchange, message, etags)
                return self._answer(exchange, message, reply)
            operation = await submission.submit(exchange, message)
        return await submission.answer(exchange, operation, preferences)

    def _expected(self, exchange: Exchange, message: Any) -> Sequence[str]:  # noqa: ANN401
        """Give the etags of which a write expects one, and put the first into its message."""
        if exchange.if_match is None or self._reads:
            return ()
        body_etag = message.appointment.etag if self.takes_body else ""
        etags = expected_etags(exchange.if_match, body_etag)
        message.etag = etags[0]
        return etags

    async def _call(
        self,
        exchange: Exchange,
        message: Any,  # noqa: ANN401  messages of any type
        etags: Sequence[str],
    ) -> Reply:
        """Call the service, once for each etag until one is the stored one.

        Each call is decided by itself, and none but the last writes anything.
        """
        service = self._settings.service
        try:
            for further in etags[1:]:
                try:
                    return await service.call(self._rpc_path, message, exchange)
                except ProblemError as error:
                    if error.problem.code != Reason.ETAG_MISMATCH:
                        raise
                message.etag = further
            return await service.call(self._rpc_path, message, exchange)
        except ProblemError as error:
            if exchange.if_match is None or error.problem.code != Reason.APPOINTMENT_NOT_FOUND:
                raise
            raise refusal(Reason.ETAG_MISMATCH, error.problem.detail, error.headers) from error

    def _answer(self, exchange: Exchange, message: Message, reply: Reply) -> Response:
        headers = {**_COMMON_HEADERS, **revision_header(reply.organization_revision)}
        if not self._has_outcome and self._location is None:
            if self._reads and len(reply.response) <= MAX_CACHED_BYTES:
                body, further = self._render_cached(reply.response)
            else:
                body, further = self._render_response(reply.response)
            headers.update(further)
            if self._has_etag and _is_not_modified(exchange, headers):
                return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
            return json_answer(HTTPStatus.OK, body, headers)
        response = self._read_response(reply.response)
        shown = self._shown(response)
        if not self._has_outcome:  # nothing but a creation stores without one
            headers[hdrs.LOCATION] = location_of(
                self._location or "", shown.id, shown.organization_id
            )
            body, further = self._body(shown)
            return json_answer(HTTPStatus.CREATED, body, {**headers, **further})
        dry_run = getattr(message, "validate_only", False)
        return self._written(exchange, shown, response.outcome, headers, dry_run)

    def _written(
        self,
        exchange: Exchange,
        shown: Any,  # noqa: ANN401  messages of any type
        outcome: Outcome.ValueType,
        headers: dict[str, str],
        dry_run: bool = False,
    ) -> Response:
        """Answer a write that was made, or that would have been."""
        headers[OUTCOME] = exchange.outcome = _OUTCOMES[outcome]
        created = outcome == Outcome.CREATED and not dry_run
        if self._location is not None and not dry_run:
            headers[hdrs.LOCATION] = location_of(self._location, shown.id, shown.organization_id)
        body, further = self._body(shown)
        status = HTTPStatus.CREATED if created else HTTPStatus.OK
        return json_answer(status, body, {**headers, **further})

    def _shown(self, response: Any) -> Any:  # noqa: ANN401  messages of any type
        return getattr(response, self._response_body) if self._response_body else response

    def _render_response(self, encoded: bytes) -> tuple[bytes, dict[str, str]]:
        return self._body(self._shown(self._read_response(encoded)))

    def _body(self, shown: Any) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
        """Give the body, and the headers that belong to it."""
        etag = shown.etag if self._has_etag else ""
        return orjson.dumps(self._render(shown)), {ETAG: f'"{etag}"'} if etag else {}


def _is_not_modified(exchange: Exchange, headers: Mapping[str, str]) -> bool:
    """Evaluate the conditions of a read (RFC 9110, 13.2.2). Raises `ProblemError`: 412."""
    etag = headers[ETAG][1:-1]
    if exchange.if_match is not None and not exchange.if_match.match_strongly(etag):
        raise refusal(
            Reason.ETAG_MISMATCH,
            "the appointment has another etag than those in If-Match",
            {name: headers[name] for name in (REVISION, ETAG)},
        )
    return exchange.if_none_match is not None and exchange.if_none_match.match_weakly(etag)
