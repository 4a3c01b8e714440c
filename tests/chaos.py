"""Kills and restarts random processes while writers write."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import grpc
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.postgres import EmbeddedPostgres
from local.programs import Program, StartError
from local.rabbitmq import RabbitMQ
from tests.api import appointment

# Errors of writes that were not accepted or applied, or whose result is not known.
TRY_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
TRY_AGAIN_STATUSES = (429, 503, 504)

# Seconds.
CALL_TIMEOUT = 5.0
PAUSE = 0.1

CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)

Start = Callable[[], Program]


@dataclass(slots=True, kw_only=True)
class Running:
    """The parts that can be killed. A killed part is restarted with the same settings."""

    postgres: EmbeddedPostgres
    broker: RabbitMQ
    starts: dict[str, Start]
    programs: dict[str, Program] = field(default_factory=dict)

    def start(self, part: str) -> None:
        if part == "postgres":
            self._start_postgres()
        elif part == "broker":
            self.broker.start()
        else:
            self.programs[part] = self.starts[part]()

    def kill(self, part: str, *, hard: bool) -> None:
        """Kill a part; of PostgreSQL all processes, or only the postmaster (`hard`)."""
        if part == "postgres":
            if hard and self.postgres.pid is not None:
                os.kill(self.postgres.pid, signal.SIGKILL)
            self.postgres.stop(immediate=True)
        elif part == "broker":
            self.broker.kill()
        else:
            self.programs[part].kill()

    def _start_postgres(self) -> None:
        """Start PostgreSQL again after the last process of the killed server has ended."""
        give_up = time.monotonic() + 30
        while True:
            try:
                return self.postgres.start()
            except StartError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)


class Hand:
    """Kills parts in a random order, at times that depend on the progress of the writers."""

    # Killed parts are started in this order.
    ORDER = ("postgres", "broker", "service", "gateway", "worker-0", "worker-1", "worker-2")

    def __init__(self, dice: random.Random) -> None:
        workers = [part for part in self.ORDER if part.startswith("worker")]
        early = [[worker] for worker in workers]
        late = [["postgres"], ["broker"], ["service"], ["gateway"], ["gateway", "service"]]
        # Operations pile up while the service is replaced.
        late += [workers, [*workers, "service"], [*workers, "broker"]]
        # Workers die with operations that are not applied.
        late += [["postgres", *workers]]
        dice.shuffle(early)
        dice.shuffle(late)
        # The broker loses a queue that was declared right before it is killed.
        self._victims = early + late
        count = len(self._victims)
        self._moments = [(0.05 + n + dice.random() * 0.9) / count for n in range(count)]
        self._hard = [dice.random() < 0.5 for _ in range(count)]
        self._down = [dice.uniform(0, 0.3) for _ in range(count)]
        self.done: list[str] = []
        # The progress that writers may make now. Without a limit they would finish too early.
        self.limit = 0.0

    async def play(self, running: Running, progress: Callable[[], float]) -> None:
        """Kill parts at times spread over the progress from 0 to 1."""
        following = [*self._moments[1:], 1.0]
        for moment, limit, victims, hard, down in zip(
            self._moments, following, self._victims, self._hard, self._down, strict=True
        ):
            self.limit = moment
            while progress() < moment:  # noqa: ASYNC110  # the writers' affair, not an event
                await asyncio.sleep(0.01)
            # While a part is down, the writers continue as far as they can.
            self.limit = limit
            for victim in victims:
                await asyncio.to_thread(running.kill, victim, hard=hard)
                await asyncio.sleep(down)
            self.done.append(f"{'+'.join(victims)} at {progress():.2f}")
            for victim in sorted(victims, key=self.ORDER.index):
                await asyncio.to_thread(running.start, victim)
        self.limit = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A write of a sequential writer; `refused` by an overlap with the one before it.

    One with a title changes an appointment that others change too. It has no idempotency
    key and is sent only once, so that applying it twice would be seen.
    """

    id: str
    resource: str
    start: int
    end: int
    title: str = ""
    cancel: bool = False
    refused: bool = False


def steps(prefix: str, count: int) -> list[Step]:
    """Return writes: mostly creations, with some cancels, overlaps and updates in between."""
    made: list[Step] = []
    for number in range(count):
        start, end, id = number * 10, number * 10 + 10, f"{prefix}{number}"
        match number % 20:
            case 7:
                step = Step(id=id, resource=prefix, start=start - 5, end=end - 5, refused=True)
            case 3 | 13:
                id = f"{prefix}-changed"
                step = Step(id=id, resource=id, start=start, end=end, title=f"{number}")
            case 19:
                before = made[-1].id
                step = Step(id=before, resource=prefix, start=start, end=end, cancel=True)
            case _:
                step = Step(id=id, resource=prefix, start=start, end=end)
        made.append(step)
    return made


class Writers:
    """Sends writes by gRPC or REST, chosen at random, until their results are known."""

    def __init__(
        self,
        service: str,
        gateway: str,
        session: aiohttp.ClientSession,
        dice: random.Random,
        may_go_on: Callable[[int], bool],
    ) -> None:
        self._channel = grpc.aio.insecure_channel(service, CHANNEL_OPTIONS)
        self._stub: Any = AppointmentServiceStub(self._channel)
        self._url = f"{gateway}/api/appointments"
        self._session = session
        self._dice = dice
        self._may_go_on = may_go_on
        # By organization and prefix, for each step: the name of its operation, "" of a
        # synchronous one, None where it is not known whether it was accepted.
        self.known: dict[tuple[str, str], list[str | None]] = {}
        self.count = 0
        self.retries = 0

    async def close(self) -> None:
        await self._channel.close()

    async def submit_all(self, organization: str, wanted: Sequence[Step]) -> None:
        """Submit one after another, each after the previous one was accepted."""
        names = self.known[organization, "a"] = []
        for number, step in enumerate(wanted):
            while not self._may_go_on(self.count):  # noqa: ASYNC110  # others count too
                await asyncio.sleep(0.02)
            names.append(await self._write(organization, step, f"async-{number}", accept=True))
            self.count += 1

    async def write_all(self, organization: str, wanted: Sequence[Step]) -> None:
        """Write one after another by synchronous calls."""
        names = self.known[organization, "s"] = []
        for number, step in enumerate(wanted):
            names.append(await self._write(organization, step, f"sync-{number}", accept=False))

    async def _write(self, organization: str, step: Step, key: str, *, accept: bool) -> str | None:
        """Send a write until its result is known; only once if it has no idempotency key."""
        while True:
            by_rest = self._dice.random() < 0.5
            send = self._send_rest if by_rest else self._send_grpc
            name = await send(organization, step, "" if step.title else key, accept=accept)
            if name is not None or step.title:
                return name
            self.retries += 1
            await asyncio.sleep(PAUSE)

    async def _send_grpc(
        self, organization: str, step: Step, key: str, *, accept: bool
    ) -> str | None:
        cancel = rpc.CancelAppointmentRequest(
            organization_id=organization, id=step.id, idempotency_key=key
        )
        upsert = rpc.UpsertAppointmentRequest(
            appointment=appointment(
                organization,
                step.id,
                step.start,
                step.end,
                resource_id=step.resource,
                title=step.title,
            ),
            idempotency_key=key,
        )
        try:
            if accept:
                request = (
                    rpc.SubmitAppointmentRequest(cancel=cancel)
                    if step.cancel
                    else rpc.SubmitAppointmentRequest(upsert=upsert)
                )
                operation = await self._stub.SubmitAppointment(request, timeout=CALL_TIMEOUT)
                name: str = operation.name
                return name
            if step.cancel:
                await self._stub.CancelAppointment(cancel, timeout=CALL_TIMEOUT)
            else:
                await self._stub.UpsertAppointment(upsert, timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            if step.refused and error.code() is grpc.StatusCode.ALREADY_EXISTS:
                return ""
            assert error.code() in TRY_AGAIN, error
            return None
        return ""

    async def _send_rest(
        self, organization: str, step: Step, key: str, *, accept: bool
    ) -> str | None:
        headers = {"Idempotency-Key": key} if key else {}
        if accept:
            headers["Prefer"] = "respond-async"
        url = self._url
        body = None
        if step.cancel:
            url += f"/{quote(step.id)}?organizationId={quote(organization)}"
        else:
            wanted = appointment(organization, step.id, step.start, step.end)
            body = {
                "organizationId": organization,
                "id": step.id,
                "resourceId": step.resource,
                "title": step.title,
                "start": wanted.start.ToJsonString(),
                "end": wanted.end.ToJsonString(),
            }
        method = "DELETE" if step.cancel else "POST"
        with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
            async with self._session.request(method, url, json=body, headers=headers) as answer:
                text = await answer.text()
                if answer.status == 202:
                    found = await answer.json()
                    name: str = found["name"]
                    return name
                if not accept and (answer.status < 300 or (step.refused and answer.status == 409)):
                    return ""
                assert answer.status in TRY_AGAIN_STATUSES, text
        return None
