"""Server-sent events (WHATWG HTML, section 9.2) of changes to appointments.

An `EventSource` reconnects after the end of a stream, but gives up on any status except 200. So
a temporary error does not refuse the request: the stream begins, and waits.

An id without data is no event, but a client that reconnects continues after it (section 9.2.6,
"dispatch the event"). So a stream begins with one, and with a filter sends the revision that it has
reached. A client thus knows the epoch of its revision also if nothing changes.
"""

import asyncio
import re
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
import structlog
from aiohttp import hdrs
from aiohttp.web import BaseRequest, StreamResponse
from appointments.v1.appointment_pb2 import HistoryEntry
from appointments.v1.appointment_service_pb2 import (
    WatchAppointmentsRequest,
    WatchAppointmentsResponse,
)

from gateway.endpoints.organizations import organization_reader
from gateway.endpoints.rpc import CallEndpoint
from gateway.http.body_stream import SlowReaderError
from gateway.http.context import RequestContext
from gateway.http.negotiation import qualities
from gateway.http.problems import FieldError, ProblemError, StatusConverter, invalid_fields
from gateway.http.streams import (
    MEDIA_TYPE,
    EndReason,
    EventStream,
    Streams,
    TooManyStreamsError,
)
from gateway.metrics import Metrics
from gateway.transcoding.inputs import InputReader
from gateway.transcoding.routes import Route
from gateway.upstream.client import revision_header
from gateway.upstream.metadata import Metadata, metadata_of
from gateway.upstream.relay import CallError
from gateway.upstream.watch import Watch
from public_json.reasons import Reason
from public_json.rendering import MessageRenderer

LAST_EVENT_ID = "Last-Event-ID"
HEARTBEAT = b":\n\n"

EVENT_ID = r"[0-9]{1,18}(\.[0-9TZ]{1,32})?"
"""A revision, followed by its epoch if that is not the first one."""

_READABLE_ID = re.compile(EVENT_ID)
_EVENTS = {number: name.lower() for name, number in HistoryEntry.Change.items()}


class ChangesEndpoint:
    """Returns a page of changes, or a stream of them if the request accepts events.

    A stream ends if its client reads nothing for `reader_timeout` seconds.
    """

    takes_body = False

    def __init__(
        self,
        route: Route,
        page: CallEndpoint,
        watch: Watch,
        statuses: StatusConverter,
        *,
        streams: Streams,
        metrics: Metrics,
        reader_timeout: float,
    ) -> None:
        if route.stream is None:
            raise ValueError(f"{route.rpc.full_name} has no stream")
        self.name = page.name
        self._page = page
        self._stream_name = route.stream_name
        self._input = InputReader(replace(route, rpc=route.stream))
        self._organization_of = organization_reader(route.stream.input_type)
        self._render = MessageRenderer(HistoryEntry.DESCRIPTOR).render
        self._watch = watch
        self._statuses = statuses
        self._streams = streams
        self._metrics = metrics
        self._reader_timeout = reader_timeout
        self._log = structlog.get_logger()

    async def __call__(self, context: RequestContext) -> StreamResponse:
        """Respond. Raises `ProblemError` for every error before a stream has begun."""
        last_event_id = _last_event_id(context.request)
        if accepts_events(context.request):
            return await self._stream(context, last_event_id)
        response = await self._page(context)
        response.headers[hdrs.VARY] = hdrs.ACCEPT
        return response

    async def _stream(self, context: RequestContext, last_event_id: str | None) -> StreamResponse:
        context.method = self._stream_name
        metadata = metadata_of(context)
        request: Any = self._input.read(context, b"")
        context.organization = self._organization_of(request)
        resumes = last_event_id is not None
        if last_event_id is not None:
            revision, _, request.epoch = last_event_id.partition(".")
            request.after_revision = int(revision)
        stream = EventStream(context, reader_timeout=self._reader_timeout)
        try:
            async with asyncio.timeout(None) as stopping:
                with self._streams.slot(stopping):
                    try:
                        end = await self._send(stream, context, request, metadata, resumes=resumes)
                    except SlowReaderError:
                        end = EndReason.SLOW_READER
                    # The stream keeps its slot until the client has read the rest.
                    await self._end(stream, context, end)
        except TimeoutError:
            await self._end(stream, context, EndReason.STOPPING)
        except TooManyStreamsError:
            await self._end(stream, context, EndReason.OVERLOADED)
        except ConnectionError:
            await self._end(stream, context, EndReason.CALLER_GONE)
        except asyncio.CancelledError:
            await self._end(stream, context, EndReason.CALLER_GONE)
            raise
        except CallError as error:
            context.rate_limits = error.rate_limits
            # An error in the revision is reported for the header that contained it.
            names = {"after_revision": LAST_EVENT_ID} if resumes else {}
            raise ProblemError(
                self._statuses.of_status(error.status, names),
                revision_header(error.organization_revision),
            ) from error
        return stream.response

    async def _send(
        self,
        stream: EventStream,
        context: RequestContext,
        request: WatchAppointmentsRequest,
        metadata: Metadata,
        *,
        resumes: bool,
    ) -> EndReason | None:
        """Send events, and return why they end; for HEAD, send only the headers and return None.

        `resumes` is true if the stream continues after an event that the client has received.
        Raises `CallError` if the service refuses the call before the stream has begun.
        """
        while True:
            reported = -1
            messages = self._watch.follow(request, metadata, request_id=context.request_id)
            try:
                async with aclosing(messages):
                    async for message in messages:
                        await stream.begin()
                        if context.request.method == hdrs.METH_HEAD:
                            return None
                        if message is None or message.revision == reported:
                            await stream.send(HEARTBEAT)
                        elif not message.entries:
                            await stream.send(b"id: %s\n\n" % _id(message.revision, message.epoch))
                        else:
                            await stream.send(self._events(message))
                            context.events = (context.events or 0) + len(message.entries)
                        if message is not None:
                            reported, resumes = message.revision, True
            except CallError as error:
                latest = error.organization_revision
                ended = self._statuses.of_status(error.status).code == Reason.EPOCH_ENDED
                # The client has seen later revisions than the latest, or those of another epoch.
                restored = latest is not None and (ended or latest < request.after_revision)
                if not resumes or latest is None or not restored:
                    if context.stream_status is None:
                        raise
                    self._log.warning(
                        "watch refused",
                        request_id=context.request_id,
                        code=error.status.code,
                        error=error.status.message,
                    )
                    return EndReason.REFUSED
            else:
                return EndReason.SERVICE_UNAVAILABLE
            # The database was restored to an earlier time.
            await stream.begin()
            await stream.send(b'id: 0\nevent: reset\ndata: {"revision":"%d"}\n\n' % latest)
            request.after_revision = 0
            request.ClearField("epoch")

    async def _end(
        self, stream: EventStream, context: RequestContext, end: EndReason | None
    ) -> None:
        if end is None or stream.ended:
            return
        self._metrics.streams_ended.labels(end).inc()
        if end is not EndReason.CALLER_GONE:
            context.code = end.name
        await stream.finish(end)

    def _events(self, message: WatchAppointmentsResponse) -> bytes:
        return b"".join(
            b"id: %s\nevent: %s\ndata: %s\n\n"
            % (
                _id(entry.revision, message.epoch),
                _EVENTS[entry.change].encode(),
                orjson.dumps(self._render(entry)),
            )
            for entry in message.entries
        )


def _id(revision: int, epoch: str) -> bytes:
    return f"{revision}.{epoch}".encode() if epoch else b"%d" % revision


def accepts_events(request: BaseRequest) -> bool:
    """Return whether a client accepts events and does not prefer JSON (RFC 9110, 12.5.1)."""
    accepted = qualities(request, hdrs.ACCEPT)
    events = accepted.get(MEDIA_TYPE, 0)
    return events > 0 and events >= accepted.get("application/json", 0)


def _last_event_id(request: BaseRequest) -> str | None:
    values = request.headers.getall(LAST_EVENT_ID, ())
    if not values:
        return None
    if len(values) > 1:
        raise invalid_fields([FieldError(LAST_EVENT_ID, "must not be repeated")])
    if not _READABLE_ID.fullmatch(values[0]):
        raise invalid_fields([FieldError(LAST_EVENT_ID, "must be the id of an event: a revision")])
    return str(values[0])
