"""Answers QueryAvailability from what occupies the resources, or from memory."""

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from weakref import WeakValueDictionary

from appointments.v1 import availability_pb2 as rpc

from runtime.helper import Helper
from runtime.turns import done_in_turn
from service.availability.opening_hours import DAY
from service.availability.query import AvailabilityQuery
from service.errors import InvalidFields, Overloaded
from service.messages import organization_of
from service.reads.moments import Moments
from service.reads.occupied import Occupied, Wanted
from service.reads.page_cache import PageCache
from service.reads.short_windows import ShortWindows
from service.reads.store import Page, ReadStore
from service.rpc.availability_helper import Question
from service.rpc.availability_requests import read_query
from service.rpc.handler import Call
from service.rpc.moments import min_revision
from service.rpc.wire import EncodedResponse

# What a gRPC client accepts by default.
MAX_RESPONSE_BYTES = 4 * 1024 * 1024

# gRPC takes 50 ms per MiB to compress, in which no other call is answered.
MAX_COMPRESSED_BYTES = 1024 * 1024
# A read may take as long as a hundred others, which use the other connections.
MAX_CONCURRENT_READS = 2
# Resources times days. Larger queries are answered one after another, in turn by organization.
LARGE_DAYS = 1_000
# Up to so many, queries share a statement.
SHORT_DAYS = 100
# Large queries of one organization that may wait.
MAX_WAITING = 16
# Computing these takes some 10 ms. More are computed by the helper.
MAX_RANGES_IN_LOOP = 4_000
# Threads that wait for the helper, which computes one answer at a time.
MAX_HELPED = 2

TOO_LARGE = (
    "makes a response of more than 4 MiB; ask for a shorter range of time or for fewer resources"
)


class AvailabilityReader:
    """Answers queries. The answer to a repeated one is kept while its organization is unchanged."""

    def __init__(self, reads: ReadStore, moments: Moments, helper: Helper) -> None:
        """Prepare a reader. `helper` runs `service.rpc.availability_helper`."""
        self._reads = reads
        self._helper = helper
        self._turns = _Turns()
        self._cache: PageCache[EncodedResponse] = PageCache(
            moments, max_page_bytes=MAX_RESPONSE_BYTES + 64 * 1024
        )
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._computing = asyncio.Lock()
        self._helped = asyncio.Semaphore(MAX_HELPED)
        self._short = ShortWindows(reads, self._slots)
        # By serialized request, while it is answered.
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, request: rpc.QueryAvailabilityRequest, call: Call) -> EncodedResponse:
        """Answer a query.

        Raises InvalidFields, also if the response would be too large, and Overloaded.
        """
        response = await self._answer(request, call)
        call.compress = len(response.content) <= MAX_COMPRESSED_BYTES
        return response

    async def _answer(self, request: rpc.QueryAvailabilityRequest, call: Call) -> EncodedResponse:
        call.organization_id = organization_of(request)
        query = read_query(request)
        if request.HasField("min_revision"):
            response, page = await self._read(request, query, call.organization_id)
            call.organization_revision = page.revision
            return response
        key = request.SerializeToString(deterministic=True)
        # Of equal queries, one is computed. The others then see whether the result is still
        # current, which is a hundred times as fast if it is large.
        async with self._locks.setdefault(key, asyncio.Lock()):
            cached = await self._cache.current(key, call.organization_id)
            if cached is not None:
                call.organization_revision, _ = cached.moment
                return cached.response
            response, page = await self._read(request, query, call.organization_id)
            first_expiry = min(
                (each.first_expiry for each in page.items if each.first_expiry is not None),
                default=None,
            )
            size = len(response.content)
            self._cache.put(key, page.moment, first_expiry, response, size=size)
        call.organization_revision = page.revision
        return response

    async def _read(
        self, request: rpc.QueryAvailabilityRequest, query: AvailabilityQuery, organization_id: str
    ) -> tuple[EncodedResponse, Page[Occupied]]:
        as_of = request.as_of_revision if request.HasField("as_of_revision") else None
        wanted = Wanted(
            request.resource_id,
            query.start - query.buffer_before,
            query.end + query.buffer_after,
        )
        days = len(wanted.resource_ids) * (wanted.end - wanted.start) // DAY
        if days <= SHORT_DAYS and as_of is None and not request.HasField("min_revision"):
            page = await self._short.occupied(organization_id, wanted)
            return await self._computed(query, page, page.revision), page
        # A year of 100 resources takes seconds of processor time, most of it in PostgreSQL.
        turn = self._slots if days <= LARGE_DAYS else self._turns.turn(organization_id)

        async def read() -> tuple[EncodedResponse, Page[Occupied]]:
            page = await self._reads.occupied(
                organization_id,
                wanted.resource_ids,
                start=wanted.start,
                end=wanted.end,
                as_of=as_of,
                min_revision=min_revision(request),
            )
            revision = page.revision if as_of is None else as_of
            return await self._computed(query, page, revision), page

        return await done_in_turn(turn, read)

    async def _computed(
        self, query: AvailabilityQuery, page: Page[Occupied], revision: int
    ) -> EncodedResponse:
        question = Question(query=query, occupied=page.items, revision=revision)
        entries = 1 if query.together else len(page.items)
        ranges = sum(each.count for each in page.items) + entries * query.openings
        if ranges <= MAX_RANGES_IN_LOOP:
            async with self._computing:
                content = question.answer()
                await asyncio.sleep(0)  # other calls go on before the next answer
        else:
            helped = partial(asyncio.to_thread, self._helper.run, pickle.dumps(question))
            content = await done_in_turn(self._helped, helped)
        if len(content) > MAX_RESPONSE_BYTES:
            raise InvalidFields([("to", TOO_LARGE)], organization_revision=page.revision)
        return EncodedResponse(content)


class _Turns:
    """Lets one large query at a time be answered, and of one organization a few wait."""

    def __init__(self) -> None:
        self._large = asyncio.Lock()
        # By organization, while it has queries. In its turn, one of them waits for the others'.
        self._own: WeakValueDictionary[str, _OrganizationTurns] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, organization_id: str) -> AsyncIterator[None]:
        """Wait until the block may answer a query. Raises Overloaded if too many wait."""
        own = self._own.setdefault(organization_id, _OrganizationTurns())
        if own.waiting > MAX_WAITING:
            raise Overloaded(
                "too many large availability queries of the organization wait; try again later"
            )
        own.waiting += 1
        try:
            async with own.lock, self._large:
                yield
        finally:
            own.waiting -= 1


class _OrganizationTurns:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
