"""Pages of lists that were answered before, for as long as their organization is unchanged."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from appointments.v1 import appointment_service_pb2 as rpc

from service.moments import Moment, Moments

MAX_BYTES = 16 * 1024 * 1024
MAX_PAGE_BYTES = 256 * 1024
# Changes made by hand, past apply_writes, show after so many seconds at the latest.
KEPT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class AnsweredPage:
    """A page, and the moment of its organization that it shows."""

    moment: Moment
    response: rpc.ListAppointmentsResponse
    size: int
    until: float


class AnsweredPages:
    """Remembers pages by their requests, the least recently used ones forgotten first."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._pages: OrderedDict[bytes, AnsweredPage] = OrderedDict()
        self._size = 0

    async def current(self, request: bytes, organization_id: str) -> AnsweredPage | None:
        """Return the page of a request if the database says that nothing has changed."""
        page = self._pages.get(request)
        if page is None or page.until < time.monotonic():
            return None
        self._pages.move_to_end(request)
        return page if page.moment == await self._moments.of(organization_id) else None

    def put(self, request: bytes, moment: Moment, response: rpc.ListAppointmentsResponse) -> None:
        # A message takes several times its size on the wire.
        size = 4 * response.ByteSize() + len(request)
        if size > MAX_PAGE_BYTES:
            return
        old = self._pages.pop(request, None)
        self._pages[request] = AnsweredPage(moment, response, size, time.monotonic() + KEPT_SECONDS)
        self._size += size - (old.size if old else 0)
        while self._size > MAX_BYTES:
            _, oldest = self._pages.popitem(last=False)
            self._size -= oldest.size
