"""A cache of responses.

A response is valid while its organization is unchanged, and until the first hold in it expires by
the clock of the database. One that is not used is dropped within seconds, so that what a redaction
erases does not stay in memory.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from runtime.recent import Recent
from service.reads.moments import Moment, Moments, Now

MAX_BYTES = 16 * 1024 * 1024
MAX_CACHED_PAGE_BYTES = 256 * 1024
# Seconds. Changes made directly in the database, without apply_writes, show after this time.
MAX_AGE = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CachedPage(Generic[T]):
    """A response, the moment of its organization when it was read, and its first expiry."""

    moment: Moment
    first_expiry: datetime | None
    response: T
    fresh_until: float


class PageCache(Generic[T]):
    """Responses of one method by serialized request. The least recently used are evicted first.

    Responses larger than `max_page_bytes` are not stored.
    """

    def __init__(
        self,
        moments: Moments,
        *,
        max_bytes: int = MAX_BYTES,
        max_page_bytes: int = MAX_CACHED_PAGE_BYTES,
    ) -> None:
        self._moments = moments
        self._max_page_bytes = max_page_bytes
        self._pages: Recent[bytes, CachedPage[T]] = Recent(max_size=max_bytes)

    async def current(
        self, request: bytes, organization_id: str, now: Now | None = None
    ) -> CachedPage[T] | None:
        """Return the page of a request if it is still valid by what the database says.

        `now` is what the call has read of the database already, if anything.
        """
        page = self._pages.get(request)
        if page is None:
            return None
        if page.fresh_until >= time.monotonic():
            if now is None:
                now = await self._moments.of(organization_id)
            if now.shows(page.moment, page.first_expiry):
                return page
        self._pages.drop(request)
        return None

    def put(
        self,
        request: bytes,
        moment: Moment,
        first_expiry: datetime | None,
        response: T,
        *,
        size: int,
    ) -> None:
        """Store a response unless it is too large. `first_expiry` is None if it has no holds.

        `size` is how much memory it takes, in bytes.
        """
        size += len(request)
        if size > self._max_page_bytes:
            return
        page = CachedPage(moment, first_expiry, response, time.monotonic() + MAX_AGE)
        self._pages.put(request, page, size=size)
