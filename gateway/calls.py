"""The endpoint of an RPC: one HTTP request becomes one gRPC call."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import hdrs
from aiohttp.web import Response
from appointments.v1.appointment_pb2 import Outcome
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import aio

from gateway.answers import REQUEST_ID, json_answer
from gateway.bodies import BodyReader, refuse_body
from gateway.exchange import Exchange
from gateway.inputs import InputReader
from gateway.problems import (
    FieldError,
    Problem,
    ProblemError,
    StatusReader,
    invalid_fields,
    too_large,
)
from gateway.rendering import MessageRenderer, Render
from gateway.routes import Route

ACTOR = "X-Actor"
MAX_ACTOR_LENGTH = 256
REVISION = "Organization-Revision"
OUTCOME = "Appointment-Outcome"
DEFAULT_ORGANIZATION = "default"

_PRINTABLE = re.compile("[ -~]*")


class InFlight:
    """Counts what is under way, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self._limit:
            raise ProblemError(
                Problem(
                    status=HTTPStatus.TOO_MANY_REQUESTS,
                    code="OVERLOADED",
                    detail="Too many requests are in flight already.",
                    retry_after=1,
                )
            )
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What all endpoints share; the timeout of a call is in seconds, sizes are in bytes."""

    channel: aio.Channel
    timeout: float
    max_message_bytes: int
    bodies: BodyReader
    # Apart from the calls, so that callers who send slowly do not keep others out.
    receiving: InFlight
    in_flight: InFlight
    statuses: StatusReader
    special: Mapping[str, Render]


class CallEndpoint:
    """Answers the requests of one route."""

    def __init__(self, route: Route, settings: CallSettings, location: str | None) -> None:
        """Prepare the route; `location` is the path under which its writes are read, if any."""
        output = route.rpc.output_type
        self.name = route.rpc.name
        self._settings = settings
        self._input = InputReader(route)
        self._response_body = route.response_body
        shown = route.answer_message
        self._render = MessageRenderer(shown, settings.special).render
        self._has_etag = "etag" in shown.fields_by_name
        self._has_outcome = "outcome" in output.fields_by_name
        self._location = location
        # Bytes go in, so that their size is known before they are sent.
        self._call: aio.UnaryUnaryMultiCallable[bytes, Any] = settings.channel.unary_unary(
            route.rpc_path, response_deserializer=GetMessageClass(output).FromString
        )

    async def __call__(self, exchange: Exchange) -> Response:
        """Make the call and render its answer. Raises `ProblemError` for every refusal."""
        metadata = _metadata(exchange)
        body = b""
        if self._input.takes_body:
            with self._settings.receiving:
                body = await self._settings.bodies.read(exchange.request)
        else:
            refuse_body(exchange.request)
        with self._settings.in_flight:
            message = self._input.read(exchange, body)
            exchange.organization = organization_of(message)
            encoded = message.SerializeToString()
            if len(encoded) > self._settings.max_message_bytes:
                raise too_large(
                    "As a message of the service the request is more than "
                    f"{self._settings.max_message_bytes} bytes."
                )
            response, headers = await self._answer(encoded, metadata)
        shown = getattr(response, self._response_body) if self._response_body else response
        status = HTTPStatus.OK
        if self._has_outcome:
            exchange.outcome = Outcome.Name(response.outcome)
            headers[OUTCOME] = exchange.outcome
            dry_run = getattr(message, "validate_only", False)
            if response.outcome == Outcome.CREATED and not dry_run:
                status = HTTPStatus.CREATED
            if self._location is not None and not dry_run:
                headers[hdrs.LOCATION] = location_of(self._location, shown)
        if self._has_etag and shown.etag:
            headers["ETag"] = f'"{shown.etag}"'
        headers[hdrs.CACHE_CONTROL] = "private, no-cache"
        return json_answer(status, self._render(shown), headers)

    async def _answer(
        self, encoded: bytes, metadata: tuple[tuple[str, str], ...]
    ) -> tuple[Any, dict[str, str]]:
        call = self._call(encoded, timeout=self._settings.timeout, metadata=metadata)
        try:
            # Cancelled with this request, if its caller goes away.
            response = await call
        except aio.AioRpcError as error:
            trailers = error.trailing_metadata()
            details = trailers.get("grpc-status-details-bin")
            raise ProblemError(
                self._settings.statuses.of_call(
                    error.code(), error.details(), details if isinstance(details, bytes) else None
                ),
                _revision(trailers),
            ) from error
        return response, _revision(await call.trailing_metadata())


def organization_of(message: Message) -> str | None:
    """Give the organization that a request is for, for the log; the service decides."""
    holder: Any = message
    while "organization_id" not in holder.DESCRIPTOR.fields_by_name:
        if "appointment" in holder.DESCRIPTOR.fields_by_name:
            holder = holder.appointment
        elif getattr(holder, "requests", None):
            holder = holder.requests[0]
        else:
            return None
    organization: str = holder.organization_id
    return organization[:128] or DEFAULT_ORGANIZATION


def location_of(path: str, appointment: Any) -> str:  # noqa: ANN401  any message with an id
    """Give the reference under which an appointment is read."""
    # Dots need no encoding, but a segment of dots alone would be taken for a step up.
    identifier = quote(appointment.id, safe="")
    if identifier in {".", ".."}:
        identifier = identifier.replace(".", "%2E")
    location = f"{path}/{identifier}"
    if appointment.organization_id in {"", DEFAULT_ORGANIZATION}:
        return location
    return (
        f"{location}?{urlencode({'organizationId': appointment.organization_id}, quote_via=quote)}"
    )


def _metadata(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    metadata = ((REQUEST_ID.lower(), exchange.request_id),)
    actor = exchange.request.headers.get(ACTOR)
    if not actor:
        return metadata
    if not _PRINTABLE.fullmatch(actor):
        raise invalid_fields([FieldError(ACTOR, "must be printable ASCII")])
    if len(actor) > MAX_ACTOR_LENGTH:
        raise invalid_fields([FieldError(ACTOR, f"must be at most {MAX_ACTOR_LENGTH} characters")])
    return (*metadata, (ACTOR.lower(), actor))


def _revision(trailers: aio.Metadata) -> dict[str, str]:
    revision = trailers.get("organization-revision")
    return {REVISION: str(revision)} if revision is not None else {}
