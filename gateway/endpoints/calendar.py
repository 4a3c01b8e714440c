"""The calendar: all appointments of a list, for programs that subscribe to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import hdrs
from aiohttp.web import Response, StreamResponse
from appointments.v1.appointment_service_pb2 import (
    ListAppointmentsRequest,
    ListAppointmentsResponse,
)
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.endpoints.calendar_text import (
    CALENDAR_END,
    MEDIA_TYPE,
    VERSION,
    calendar_begin,
    events_text,
)
from gateway.endpoints.organizations import organization_reader
from gateway.http.body_stream import BodyStream, SlowReaderError
from gateway.http.context import RequestContext
from gateway.http.in_flight import InFlight
from gateway.http.problems import ProblemError, refusal
from gateway.transcoding.inputs import InputReader, set_condition
from gateway.transcoding.routes import Route
from gateway.upstream.client import ServiceClient, revision_header
from public_json.reasons import Reason

CALENDAR_PATH = "/api/appointments.ics"

_TAG_PREFIX = f"{VERSION}-"
"""Before the etag of the list: another version of the calendar's text has other tags."""

PAGE_SIZE = 500
_LAST_TIME = Timestamp(seconds=253_402_300_799)  # 9999-12-31T23:59:59Z

EVENTS_AT_ONCE = 5
"""Rendered without a pause, which takes a millisecond or two."""


def calendar_route(routes: Sequence[Route]) -> Route:
    """Return the route of the calendar: that of the list, without its pages."""
    [pages] = [route for route in routes if route.rpc.name == "ListAppointments"]
    return replace(
        pages,
        template=CALENDAR_PATH,
        name="GetCalendar",
        without=frozenset({"page_size", "page_token", "order_by"}),
    )


class CalendarEndpoint:
    """Streams the appointments of a list as one calendar, one page at a time.

    All pages show the same revision. An error after the first page breaks the connection, since
    an incomplete calendar looks as if appointments had been removed.
    """

    takes_body = False

    def __init__(
        self,
        route: Route,
        service: ServiceClient,
        *,
        in_flight: InFlight,
        sending: InFlight,
        reader_timeout: float,
    ) -> None:
        """Prepare the route. `sending` limits the calendars that are being sent."""
        self.name = route.name
        self._rpc_path = route.rpc_path
        self._input = InputReader(route)
        self._organization_of = organization_reader(route.rpc.input_type)
        self._service = service
        self._in_flight = in_flight
        self._sending = sending
        self._reader_timeout = reader_timeout
        self._rendering = asyncio.Lock()
        self._log = structlog.get_logger()

    async def __call__(self, context: RequestContext) -> StreamResponse:
        """Respond. Raises `ProblemError` for every error before the body has begun."""
        context.takes_password = True  # most calendar programs can send no other credentials
        request: Any = self._input.read(context, b"")
        context.organization = self._organization_of(request)
        request.page_size = PAGE_SIZE
        known = context.if_none_match
        if known is not None:
            set_condition(request, known, _TAG_PREFIX)
        with self._in_flight:
            page, revision = await self._page(request, context)
        request.ClearField("if_none_match")
        headers = {hdrs.CACHE_CONTROL: "private, no-cache", **revision_header(revision)}
        if page.etag:
            # Holds on later pages change it only when their end is recorded.
            headers[hdrs.ETAG] = f'W/"{_TAG_PREFIX}{page.etag}"'
        if context.if_match is not None and not context.if_match.any:
            raise refusal(
                Reason.ETAG_MISMATCH,
                "A calendar has a weak entity tag (W/), which never matches in If-Match.",
                headers,
            )
        if page.not_modified or (known is not None and known.any):
            return Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        headers[hdrs.CONTENT_TYPE] = f"{MEDIA_TYPE}; charset=utf-8"
        headers[hdrs.CONTENT_DISPOSITION] = 'inline; filename="appointments.ics"'
        body = BodyStream(context, headers, reader_timeout=self._reader_timeout, compress=True)
        with self._sending:
            await self._send(body, context, request, page)
        return body.response

    async def _send(
        self,
        body: BodyStream,
        context: RequestContext,
        request: ListAppointmentsRequest,
        first: ListAppointmentsResponse,
    ) -> None:
        try:
            async for page in self._pages(request, first, context):
                if context.stream_status is None:
                    await body.begin()
                    if context.request.method == hdrs.METH_HEAD:
                        return
                    await body.send(calendar_begin(context.organization or "", request.resource_id))
                for start in range(0, len(page.appointments), EVENTS_AT_ONCE):
                    # Other requests wait for one piece only, however many calendars are sent.
                    async with self._rendering:
                        text = events_text(page.appointments[start : start + EVENTS_AT_ONCE])
                        await asyncio.sleep(0)
                    await body.send(text)
            await body.send(CALENDAR_END)
            await body.end()
        except ProblemError as error:
            if context.stream_status is None:
                raise
            self._break(body, context, error.problem.code, error.problem.detail)
        except SlowReaderError:
            self._break(body, context, Reason.SLOW_READER, "the client reads nothing")
        except ConnectionError:
            body.abort()  # the client has disconnected

    def _break(self, body: BodyStream, context: RequestContext, code: str, detail: str) -> None:
        context.code = code
        self._log.warning(
            "calendar incomplete", request_id=context.request_id, code=code, error=detail
        )
        body.abort()

    async def _pages(
        self,
        request: ListAppointmentsRequest,
        first: ListAppointmentsResponse,
        context: RequestContext,
    ) -> AsyncIterator[ListAppointmentsResponse]:
        """Yield all pages as of one revision.

        Otherwise an appointment that is moved meanwhile could be missing, or there twice. The
        revision is selected by a time to come, so that holds count by the clock of the database: as
        of a revision by its number, those that have expired since it was recorded are still held.
        """
        page = first
        shows_the_past = request.HasField("as_of_revision") or request.HasField("as_of_time")
        if page.next_page_token and not shows_the_past:
            request.as_of_time.CopyFrom(_LAST_TIME)
            page, _ = await self._page(request, context)
        yield page
        while page.next_page_token:
            request.page_token = page.next_page_token
            page, _ = await self._page(request, context)
            yield page

    async def _page(
        self, request: ListAppointmentsRequest, context: RequestContext
    ) -> tuple[ListAppointmentsResponse, int]:
        """Return a page, and the organization's latest revision."""
        reply = await self._service.call(self._rpc_path, request, context)
        page = ListAppointmentsResponse.FromString(reply.response)
        return page, reply.organization_revision or page.revision
