"""The callers of other organizations, whose latency an attack should not change much."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

import grpc
from aiohttp import ClientError, ClientSession, ClientTimeout
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from bench.stack import Stack
from bench.workload import DAY, FIRST_DAY, HOUR, WINDOW

ORGANIZATIONS = 20
STORED = 1_000
PREFIX = "others"
TIMEOUT = 10.0


class Others:
    """Calls Get, List and Upsert by gRPC and by REST, each at the same constant rate.

    A latency is counted from when the call was due, so that a service that stops does not
    delay, and thereby hide, the calls after it. A call that fails counts with its time.
    """

    def __init__(self, running: Stack, channel: grpc.aio.Channel, session: ClientSession) -> None:
        self.errors: dict[str, int] = defaultdict(int)
        """The number of failed calls by their code."""
        self._url = f"http://{running.gateway}/api/appointments"
        self._stub = AppointmentServiceStub(channel)
        self._session = session
        self._number = 0
        self._calls: Mapping[str, Callable[[int], Awaitable[object]]] = {
            "gRPC Get": self._get,
            "gRPC List": self._list,
            "gRPC Upsert": self._upsert,
            "REST Get": self._rest_get,
            "REST List": self._rest_list,
            "REST Upsert": self._rest_upsert,
        }

    async def measure(self, seconds: float, *, rate: float) -> dict[str, list[float]]:
        """Return the latencies in seconds of `rate` calls of each kind per second."""
        latencies: dict[str, list[float]] = {kind: [] for kind in self._calls}
        started = perf_counter()
        async with asyncio.TaskGroup() as group:
            for turn in range(int(seconds * rate) * len(self._calls)):
                kind = list(self._calls)[turn % len(self._calls)]
                due = started + turn / (rate * len(self._calls))
                await asyncio.sleep(max(0.0, due - perf_counter()))
                self._number += 1
                group.create_task(self._timed(kind, self._number, due, latencies[kind]))
        return latencies

    async def _timed(self, kind: str, number: int, due: float, latencies: list[float]) -> None:
        try:
            await self._calls[kind](number)
        except grpc.aio.AioRpcError as error:
            self.errors[error.code().name] += 1
        except (ClientError, OSError, TimeoutError) as error:
            self.errors[getattr(error, "status", type(error).__name__)] += 1
        latencies.append(perf_counter() - due)

    async def _get(self, number: int) -> None:
        await self._stub.GetAppointment(
            rpc.GetAppointmentRequest(
                organization_id=_organization(number), id=f"stored-{number % STORED}"
            ),
            timeout=TIMEOUT,
        )

    async def _list(self, number: int) -> None:
        start = _day(number)
        request = rpc.ListAppointmentsRequest(
            organization_id=_organization(number), to=Timestamp(seconds=start + WINDOW * DAY)
        )
        getattr(request, "from").seconds = start
        await self._stub.ListAppointments(request, timeout=TIMEOUT)

    async def _upsert(self, number: int) -> None:
        request = rpc.UpsertAppointmentRequest()
        wanted = request.appointment
        wanted.organization_id, wanted.id = _organization(number), str(number)
        wanted.start.seconds, wanted.end.seconds = _free(number)
        await self._stub.UpsertAppointment(request, timeout=TIMEOUT)

    async def _rest_get(self, number: int) -> None:
        await self._request("GET", f"/stored-{number % STORED}", number, {})

    async def _rest_list(self, number: int) -> None:
        window = {"from": _text(_day(number)), "to": _text(_day(number) + WINDOW * DAY)}
        await self._request("GET", "", number, window)

    async def _rest_upsert(self, number: int) -> None:
        start, end = _free(number)
        body = {"start": _text(start), "end": _text(end)}
        await self._request("PUT", f"/{number}", number, {}, body)

    async def _request(
        self,
        method: str,
        path: str,
        number: int,
        query: Mapping[str, str],
        body: Mapping[str, str] | None = None,
    ) -> None:
        query = {"organizationId": _organization(number), **query}
        async with self._session.request(
            method, self._url + path, params=query, json=body, timeout=ClientTimeout(TIMEOUT)
        ) as response:
            response.raise_for_status()
            await response.read()


def _organization(number: int) -> str:
    return f"{PREFIX}-{number % ORGANIZATIONS}"


def _day(number: int) -> int:
    return FIRST_DAY + number * 7 % (STORED - WINDOW) * DAY


def _free(number: int) -> tuple[int, int]:
    """Return a second that no other call takes; the stored appointments take the first hour."""
    start = FIRST_DAY + number % STORED * DAY + HOUR + number // STORED
    return start, start + 1


def _text(second: int) -> str:
    return Timestamp(seconds=second).ToJsonString()
