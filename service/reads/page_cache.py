"""A cache of list pages, each good for as long as its organization is unchanged."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from appointments.v1 import appointment_service_pb2 as rpc

from service.reads.moments import Moment, Moments

MAX_BYTES = 16 * 1024 * 1024
MAX_CACHED_PAGE_BYTES = 256 * 1024
# Changes made by hand, past apply_writes, show after so many seconds at the latest.
MAX_AGE = 10.0


@dataclass(frozen=True, slots=True)
class CachedPage:
    """A page, and the moment of its organization that it shows."""

    moment: Moment
    response: rpc.ListAppointmentsResponse
    size: int
    until: float


class PageCache:
    """Pages by their requests, serialized; the least recently used are dropped first."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._pages: OrderedDict[bytes, CachedPage] = OrderedDict()
        self._size = 0

    async def current(self, request: bytes, organization_id: str) -> CachedPage | None:
        """Return the page of a request if the database says that nothing has changed."""
        page = self._pages.get(request)
        if page is None or page.until < time.monotonic():
            return None
        self._pages.move_to_end(request)
        return page if page.moment == await self._moments.of(organization_id) else None

    def put(self, request: bytes, moment: Moment, response: rpc.ListAppointmentsResponse) -> None:
        """Keep a page, if it is not too large."""
        # A message takes several times its size on the wire.
        size = 4 * response.ByteSize() + len(request)
        if size > MAX_CACHED_PAGE_BYTES:
            return
        old = self._pages.pop(request, None)
        self._pages[request] = CachedPage(moment, response, size, time.monotonic() + MAX_AGE)
        self._size += size - (old.size if old else 0)
        while self._size > MAX_BYTES:
            _, oldest = self._pages.popitem(last=False)
            self._size -= oldest.size
