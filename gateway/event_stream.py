"""Server-sent events (WHATWG HTML, section 9.2): what changes, as it changes."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import hdrs
from aiohttp.web import BaseRequest, StreamResponse
from appointments.v1.appointment_pb2 import HistoryEntry
from appointments.v1.appointment_service_pb2 import WatchAppointmentsResponse

from gateway.answers import sign
from gateway.caller import revision_header
from gateway.calls import CallEndpoint, actor_of
from gateway.exchange import Exchange
from gateway.in_flight import InFlight
from gateway.inputs import InputReader
from gateway.organizations import organization_reader
from gateway.problems import FieldError, ProblemError, StatusReader, invalid_fields, refusal
from gateway.reasons import Reason
from gateway.relay import CallError
from gateway.routes import Route
from gateway.watch import Watch
from public_json.rendering import MessageRenderer

MEDIA_TYPE = "text/event-stream"
LAST_EVENT_ID = "Last-Event-ID"
HEARTBEAT = b":\n\n"
FAREWELL = 1.0
"""Seconds that a caller has to take the rest of a stream that ends."""

EVENT_ID = "[0-9]{1,18}"

_READABLE_ID = re.compile(EVENT_ID)
_EVENTS = {number: name.lower() for name, number in HistoryEntry.Change.items()}


class Streams:
    """The streams that are open, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._open = InFlight(limit, "Too many streams are open already.")
        self._ends: set[asyncio.Timeout] = set()
        self._closed = False

    @property
    def count(self) -> int:
        return self._open.count

    @contextmanager
    def place(self, end: asyncio.Timeout) -> Iterator[None]:
        """Take one, for a stream that this timeout ends. Raises `ProblemError`: 429."""
        with self._open:
            self._ends.add(end)
            if self._closed:
                end.reschedule(0)
            try:
                yield
            finally:
                self._ends.discard(end)

    def close(self) -> None:
        """End every stream at once, those that begin later too."""
        self._closed = True
        for end in self._ends:
            end.reschedule(0)


class ChangesEndpoint:
    """Answers with a page, or with the stream of what the page lists if that is accepted."""

    takes_body = False

    def __init__(
        self,
        route: Route,
        page: CallEndpoint,
        watch: Watch,
        statuses: StatusReader,
        streams: Streams,
    ) -> None:
        if route.stream is None:
            raise ValueError(f"{route.rpc.full_name} has no stream")
        self.name = page.name
        self._page = page
        self._stream_name = route.stream.name
        self._input = InputReader(replace(route, rpc=route.stream))
        self._organization_of = organization_reader(route.stream.input_type)
        self._render = MessageRenderer(HistoryEntry.DESCRIPTOR).render
        self._watch = watch
        self._statuses = statuses
        self._streams = streams

    async def __call__(self, exchange: Exchange) -> StreamResponse:
        """Answer. Raises `ProblemError` for every refusal, before a stream begins."""
        last_event_id = _last_event_id(exchange.request)
        if accepts_events(exchange.request):
            return await self._stream(exchange, last_event_id)
        answer = await self._page(exchange)
        answer.headers[hdrs.VARY] = hdrs.ACCEPT
        return answer

    async def _stream(self, exchange: Exchange, last_event_id: int | None) -> StreamResponse:
        exchange.method = self._stream_name
        response = StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: MEDIA_TYPE,
                hdrs.CACHE_CONTROL: "no-store",
                hdrs.VARY: hdrs.ACCEPT,
                "X-Accel-Buffering": "no",  # a proxy would hold events back
            }
        )
        sign(response, exchange)
        try:
            async with asyncio.timeout(None) as end:
                with self._streams.place(end):
                    await self._send(exchange, last_event_id, response)
        except TimeoutError:
            if exchange.begun is None:
                raise _stopping() from None
        except CallError as error:
            # What the service says of the revision is said of where it was given.
            names = {} if last_event_id is None else {"after_revision": LAST_EVENT_ID}
            raise ProblemError(
                self._statuses.of_status(error.status, names),
                revision_header(error.organization_revision),
            ) from error
        except ConnectionError:
            return response  # the caller has gone
        await _finish(exchange.request, response)
        return response

    async def _send(
        self, exchange: Exchange, last_event_id: int | None, response: StreamResponse
    ) -> None:
        """Send events until there are no more to come, or the headers alone for HEAD."""
        actor = actor_of(exchange)
        asked: Any = self._input.read(exchange, b"")
        exchange.organization = self._organization_of(asked)
        if last_event_id is not None:
            asked.after_revision = last_event_id
        messages = self._watch.follow(asked, request_id=exchange.request_id, actor=actor)
        async with aclosing(messages):
            async for message in messages:
                if exchange.begun is None:
                    exchange.begun = HTTPStatus.OK
                    exchange.events = 0
                    await response.prepare(exchange.request)
                    if exchange.request.method == hdrs.METH_HEAD:
                        return
                if message is None or not message.entries:
                    await response.write(HEARTBEAT)
                else:
                    await response.write(self._events(message))
                    exchange.events = (exchange.events or 0) + len(message.entries)

    def _events(self, message: WatchAppointmentsResponse) -> bytes:
        return b"".join(
            b"id: %d\nevent: %s\ndata: %s\n\n"
            % (entry.revision, _EVENTS[entry.change].encode(), orjson.dumps(self._render(entry)))
            for entry in message.entries
        )


def accepts_events(request: BaseRequest) -> bool:
    """Tell whether a caller names events, and JSON not before them (RFC 9110, 12.5.1)."""
    accepted: dict[str, float] = {}
    for part in ",".join(request.headers.getall(hdrs.ACCEPT, ())).lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        accepted[media_type] = min((_quality(parameter) for parameter in parameters), default=1)
    events = accepted.get(MEDIA_TYPE, 0)
    return events > 0 and events >= accepted.get("application/json", 0)


def _quality(parameter: str) -> float:
    name, _, value = parameter.partition("=")
    if name != "q":
        return 1
    try:
        return float(value)
    except ValueError:
        return 0


def _last_event_id(request: BaseRequest) -> int | None:
    values = request.headers.getall(LAST_EVENT_ID, ())
    if not values:
        return None
    if len(values) > 1:
        raise invalid_fields([FieldError(LAST_EVENT_ID, "must be there only once")])
    if not _READABLE_ID.fullmatch(values[0]):
        raise invalid_fields([FieldError(LAST_EVENT_ID, "must be the id of an event: a revision")])
    return int(values[0])


def _stopping() -> ProblemError:
    return refusal(Reason.SERVICE_UNAVAILABLE, "The gateway is stopping.", retry_after=1)


async def _finish(request: BaseRequest, response: StreamResponse) -> None:
    """End a stream; a caller that does not take the rest of it is not waited for."""
    try:
        async with asyncio.timeout(FAREWELL):
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
