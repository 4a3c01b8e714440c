"""What was erased leaves the caches of all processes within seconds, without any call."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc

from gateway.endpoints.route_responses import RouteResponses
from gateway.http.shared_results import SharedResults
from gateway.transcoding.routes import SERVICES, routes_of
from runtime.recent import MAX_IDLE
from service.metrics import Metrics
from service.postgres.database import Database
from service.reads.moments import NEVER_WRITTEN, Moments
from service.reads.page_cache import PageCache
from tests.databases import database_of

pytestmark = pytest.mark.slow

WORD = "zqmemoryxw"


@pytest.fixture
async def moments(database_url: str) -> AsyncIterator[Moments]:
    database = database_of(Database, database_url, Metrics(), max_waiting=10)
    async with database:
        yield Moments(database)


def kept(*caches: object) -> bool:
    """Return whether anything that the caches refer to contains the word."""
    seen: set[int] = set()
    left = list(caches)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, asyncio.Task):
            left.append(each.result() if each.done() else None)
        elif isinstance(each, pb.Appointment | rpc.ListAppointmentsResponse):
            each = each.SerializeToString()
        if isinstance(each, bytes | str) and WORD in str(each):
            return True
        if isinstance(each, dict | list | tuple) or type(each).__module__.startswith(
            ("service.", "gateway.", "runtime.")
        ):
            left += gc.get_referents(each)
    return False


async def test_the_caches_forget(moments: Moments) -> None:
    pages: PageCache[rpc.ListAppointmentsResponse] = PageCache(moments)
    page = rpc.ListAppointmentsResponse(appointments=[pb.Appointment(title=WORD)])
    pages.put(b"request", NEVER_WRITTEN, None, page, size=100)

    [route] = [
        route
        for route in routes_of(*SERVICES)
        if (route.http_method, route.template) == ("GET", "/api/appointments/{id}")
    ]
    responses = RouteResponses(route, None, {}, lambda _, encoded: responses.render(encoded))
    reply = rpc.GetAppointmentResponse(appointment=pb.Appointment(title=WORD))
    responses._render_cached(reply.SerializeToString())

    results = SharedResults(lambda content: content * 2, growth=2, max_bytes=1000)
    await results.of(WORD.encode())

    del page, reply
    caches = (pages, responses, results)
    assert [kept(cache) for cache in caches] == [True] * 3
    await asyncio.sleep(MAX_IDLE + 0.5)
    assert [kept(cache) for cache in caches] == [False] * 3
