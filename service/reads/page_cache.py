"""A cache of list pages. A page is valid while its organization is unchanged."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from appointments.v1 import appointment_service_pb2 as rpc

from service.reads.moments import Moment, Moments

MAX_BYTES = 16 * 1024 * 1024
MAX_CACHED_PAGE_BYTES = 256 * 1024
# Seconds. Changes made directly in the database, without apply_writes, show after this time.
MAX_AGE = 10.0


@dataclass(frozen=True, slots=True)
class CachedPage:
    """A page, and the moment of its organization when it was read."""

    moment: Moment
    response: rpc.ListAppointmentsResponse
    size: int
    until: float


class PageCache:
    """Pages by serialized request. The least recently used are evicted first."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._pages: OrderedDict[bytes, CachedPage] = OrderedDict()
        self._size = 0

    async def current(self, request: bytes, organization_id: str) -> CachedPage | None:
        """Return the page of a request if the organization is unchanged in the database."""
        page = self._pages.get(request)
        if page is None or page.until < time.monotonic():
            return None
        self._pages.move_to_end(request)
        return page if page.moment == await self._moments.of(organization_id) else None

    def put(self, request: bytes, moment: Moment, response: rpc.ListAppointmentsResponse) -> None:
        """Store a page unless it is too large."""
        # In memory a message takes several times its serialized size.
        size = 4 * response.ByteSize() + len(request)
        if size > MAX_CACHED_PAGE_BYTES:
            return
        old = self._pages.pop(request, None)
        self._pages[request] = CachedPage(moment, response, size, time.monotonic() + MAX_AGE)
        self._size += size - (old.size if old else 0)
        while self._size > MAX_BYTES:
            _, oldest = self._pages.popitem(last=False)
            self._size -= oldest.size
