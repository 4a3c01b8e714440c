"""Lists of appointments: the request, the cache of pages, and the page tokens of each order."""

from datetime import datetime

from appointments.v1 import appointment_service_pb2 as rpc

from service import messages
from service.errors import InvalidFields
from service.postgres.rows import Stored, first_expiry_of
from service.reads.moments import Moments, Now
from service.reads.page_cache import PageCache
from service.reads.store import Page, PageByRevision, ReadStore
from service.reads.window import Window
from service.rpc import page_tokens
from service.rpc.appointment_encoding import encoded
from service.rpc.handler import Call
from service.rpc.list_etags import current_etag, list_etag
from service.rpc.moments import as_of_revision, min_revision
from service.rpc.wire import EncodedResponse, LengthTags

DEFAULT_PAGE_SIZE = 100
# Below the 4 MiB that a gRPC client accepts by default. A page of large appointments has fewer
# items than requested, instead of being refused by the client.
MAX_PAGE_BYTES = 3 * 1024 * 1024

_ELEMENT = LengthTags(rpc.ListAppointmentsResponse.APPOINTMENTS_FIELD_NUMBER)
_DEFAULT_ORDER = "start"
# What a page token says of the last appointment, in each order.
_BY_START = (page_tokens.time, page_tokens.appointment_id)
_BY_REVISION = (page_tokens.revision,)


class AppointmentLists:
    def __init__(
        self,
        reads: ReadStore,
        pages: PageCache[EncodedResponse],
        moments: Moments,
    ) -> None:
        self._reads = reads
        self._pages = pages
        self._moments = moments

    async def answer(
        self, request: rpc.ListAppointmentsRequest, call: Call
    ) -> rpc.ListAppointmentsResponse | EncodedResponse:
        """Return a page, from memory if it is unchanged. Raises ServiceError."""
        organization_id = call.organization_id = messages.organization_of(request)
        start, end, time = messages.check(request, "from", "to", "as_of_time")
        if start and end and end < start:
            raise InvalidFields([("to", "must not be before from")])
        # An empty tag would match the absent one of a list as of a time.
        known = list(filter(None, request.if_none_match.replace(" ", "").split(",")))
        request.ClearField("if_none_match")
        if request.order_by == _DEFAULT_ORDER:
            request.ClearField("order_by")
        now = None
        if known and time is None:
            now = await self._now(organization_id, min_revision(request))
            etag = current_etag(known, request, now)
            # A `min_revision` beyond the latest is refused below.
            if etag and request.min_revision <= now.moment[0]:
                call.organization_revision, _ = now.moment
                return rpc.ListAppointmentsResponse(etag=etag, not_modified=True)
        cache_key = request.SerializeToString(deterministic=True)
        # Not with a time: later changes may still be recorded at or before it.
        cacheable = not request.HasField("min_revision") and time is None
        if cacheable and (cached := await self._pages.current(cache_key, organization_id, now)):
            call.organization_revision, _ = cached.moment
            return cached.response
        window = Window(
            resource_id=request.resource_id if request.HasField("resource_id") else None,
            start=start,
            end=end,
            include_cancelled=request.include_cancelled,
        )
        limit = request.page_size or DEFAULT_PAGE_SIZE
        page, as_of = await self._read(request, window, time, limit=limit)
        call.organization_revision = page.revision
        # As of a revision, the state never changes.
        first_expiry = first_expiry_of(page.items) if as_of is None else None
        etag = list_etag(request, page.moment, first_expiry) if time is None else ""
        if etag in known:  # the page of a replica that is behind
            return rpc.ListAppointmentsResponse(etag=etag, not_modified=True)
        elements = messages.fitting(
            page.items, limit, _element, size_of=len, max_bytes=MAX_PAGE_BYTES
        )
        response = rpc.ListAppointmentsResponse(
            revision=page.revision if as_of is None else as_of,
            etag=etag,
        )
        if position := _next_position(page, len(elements)):
            response.next_page_token = page_tokens.encode(
                request, [*position, as_of], self._reads.epoch
            )
        # Serialized messages that are joined are one message, with the fields of both.
        answer = EncodedResponse(b"".join([*elements, response.SerializeToString()]))
        if cacheable:
            self._pages.put(cache_key, page.moment, first_expiry, answer, size=len(answer.content))
        return answer

    async def _read(
        self,
        request: rpc.ListAppointmentsRequest,
        window: Window,
        time: datetime | None,
        *,
        limit: int,
    ) -> tuple[Page[Stored], int | None]:
        """Return a page, and the revision that it is as of. By start, it has one more row."""
        organization_id = messages.organization_of(request)
        by_revision = bool(request.order_by)
        parts = _BY_REVISION if by_revision else _BY_START
        if request.page_token:
            *after, as_of = page_tokens.decode(
                request,
                request.page_token,
                (*parts, page_tokens.revision_or_none),
                self._reads.epoch,
            )
        else:
            after, as_of = [], await as_of_revision(self._reads, organization_id, request, time)
        if by_revision:
            return await self._reads.list_by_revision(
                organization_id,
                window,
                after=after[0] if after else 0,
                limit=limit,
                as_of=as_of,
                at=time,
                min_revision=min_revision(request),
            ), as_of
        return await self._reads.list(
            organization_id,
            window,
            after=(after[0], after[1]) if after else None,
            limit=limit + 1,
            as_of=as_of,
            at=time,
            min_revision=min_revision(request),
        ), as_of

    async def _now(self, organization_id: str, least: int | None) -> Now:
        """Return the moment that a read would show, from a replica if that may answer it."""
        if least is not None:
            found = await self._reads.now_at_replica(organization_id, min_revision=least)
            if found is not None:
                return found
        return await self._moments.of(organization_id)


def _element(stored: Stored) -> bytes:
    appointment = encoded(stored)
    return _ELEMENT[len(appointment)] + appointment


def _next_position(page: Page[Stored], shown: int) -> list[str | int] | None:
    """Return where the next page begins, None if there is none."""
    last = page.items[shown - 1] if shown < len(page.items) else None
    if not isinstance(page, PageByRevision):
        if last is None:
            return None
        appointment = last.appointment
        return [appointment.start.isoformat(), appointment.id]
    reached = last.revision if last else page.reached
    return [reached] if reached < page.last else None
