"""The clients: each makes one call after another, through a door chosen anew for each."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from tests.torture.doors import Door, Interrupted
from tests.torture.drawing import IDS, Drawing, Seen
from tests.torture.record import UNKNOWN, Call, Json, Recorder, Request

# How long callers wait, in seconds. Some give up before the service does.
PATIENCE = (1.0, 3.0, 10.0)
PAGE = 1000


class Ledger:
    """Numbers the calls and records them when they end."""

    def __init__(self, recorder: Recorder, started: float) -> None:
        self.count = 0
        self.unknown = 0
        self._recorder = recorder
        self._started = started
        self._last = 0

    def now(self) -> float:
        """Return the seconds since the start of the run."""
        return time.monotonic() - self._started

    def number(self) -> int:
        self._last += 1
        return self._last

    async def call(
        self,
        organization: str,
        door: Door,
        request: Request,
        send: Callable[[str], Awaitable[Json]],
    ) -> Call:
        """Make a call and record it."""
        number, begin = self.number(), self.now()
        answer = await send(str(number))
        return self.record(number, organization, door.name, request, begin, answer)

    def record(
        self,
        number: int,
        organization: str,
        door: str,
        request: Request,
        begin: float,
        answer: Json,
    ) -> Call:
        call = Call(
            number=number,
            organization=organization,
            door=door,
            request=request,
            begin=begin,
            end=self.now(),
            answer=answer,
        )
        self._recorder.call(call)
        self.count += request.kind not in ("watch", "delivery")
        self.unknown += UNKNOWN in answer
        return call


@dataclass(slots=True, kw_only=True)
class Tenant:
    """An organization: its doors for all calls, and those for operations of its queue."""

    name: str
    doors: Sequence[Door]
    accepting: Sequence[Door]
    seen: Seen = field(default_factory=Seen)
    # The accepted operations whose end is not known yet, with their calls.
    pending: list[tuple[str, int]] = field(default_factory=list)
    streams: int = 0
    # What a read of its webhook asks for.
    webhook: Json = field(default_factory=dict)


async def send(
    ledger: Ledger, tenant: Tenant, door: Door, request: Request, seconds: float
) -> Call:
    """Make a call of a tenant, and learn from its answer."""

    async def answer(actor: str) -> Json:
        if request.kind == "write":
            return await door.write(
                tenant.name,
                request.items[0],
                accepted=request.accepted,
                actor=actor,
                seconds=seconds,
            )
        if request.kind == "batch":
            return await door.batch(
                tenant.name,
                request.items,
                atomic=request.asks["atomic"],
                validate_only=request.asks["validate_only"],
                actor=actor,
                seconds=seconds,
            )
        kind = "changes" if request.kind == "replay" else request.kind
        return await door.read(tenant.name, kind, request.asks, seconds=seconds)

    call = await ledger.call(tenant.name, door, request, answer)
    tenant.seen.learn(request, call.answer)
    if "operation" in call.answer:
        tenant.pending.append((call.answer["operation"], call.number))
    return call


async def run_client(
    ledger: Ledger, tenant: Tenant, dice: random.Random, pause: float, over: asyncio.Event
) -> None:
    """Make calls until the run is over, with pauses of `pause` seconds on average."""
    drawing = Drawing(dice, tenant.seen)
    while not over.is_set():
        await asyncio.sleep(dice.expovariate(1 / pause))
        seconds = dice.choice(PATIENCE)
        if tenant.pending and dice.random() < 0.25:
            place = dice.randrange(len(tenant.pending))
            name, number = tenant.pending.pop(place)
            await read_operation(ledger, tenant, dice.choice(tenant.accepting), name, number)
            continue
        door = dice.choice(tenant.doors)
        request = drawing.request(by_rest=door.name.startswith("rest"))
        if request.accepted:
            door = dice.choice([one for one in tenant.accepting if one.name[:4] == door.name[:4]])
        await send(ledger, tenant, door, request, seconds)


async def read_operation(
    ledger: Ledger, tenant: Tenant, door: Door, name: str, number: int
) -> None:
    """Read an operation once; if it has not ended, it stays pending."""
    asks = {"operation": name, "of": number, "wait": number % 3 > 0}
    request = Request(kind="operation", asks=asks)
    call = await send(ledger, tenant, door, request, 3.0)
    if not call.answer.get("done"):
        tenant.pending.append((name, number))


async def run_watcher(
    ledger: Ledger, tenant: Tenant, dice: random.Random, over: asyncio.Event
) -> None:
    """Watch from where the last stream ended, or from an earlier revision again."""
    place = 0
    drawing = Drawing(dice, tenant.seen)
    while not over.is_set():
        door = dice.choice(tenant.doors)
        tenant.streams += 1
        after = place if dice.random() < 0.7 else max(0, place - dice.randrange(20))
        asks: Json = {"stream": tenant.streams, **drawing.watch(after)}
        request = Request(kind="watch", asks=asks)
        number, begin = ledger.number(), ledger.now()
        try:
            seconds = dice.uniform(4, 30)
            async with aclosing(door.watch(tenant.name, asks, seconds=seconds)) as stream:
                async for answer in stream:
                    ledger.record(number, tenant.name, door.name, request, begin, answer)
                    number = ledger.number()
                    place = max(place, answer.get("revision") or 0)
                    if over.is_set():
                        return
        except Interrupted:
            await asyncio.sleep(dice.uniform(0.05, 0.5))


async def read_everything(ledger: Ledger, tenant: Tenant, *, within: float) -> str:
    """Wait for the accepted operations, then read all there is. Return what is not answered."""
    door = tenant.doors[0]
    give_up = ledger.now() + within
    while tenant.pending:
        if ledger.now() > give_up:
            return f"{len(tenant.pending)} accepted operations have not ended"
        name, number = tenant.pending.pop()
        await read_operation(ledger, tenant, tenant.accepting[0], name, number)
    asks: dict[str, Any] = {"filter": "", "page_size": PAGE}
    while True:
        call = await send(ledger, tenant, door, Request(kind="operations", asks=asks), 30.0)
        if not call.answer.get("next"):
            break
        last = call.answer["operations"][-1]["operation"]
        asks = {**asks, "page_token": call.answer["next"], "after": last}
    for door in tenant.doors:
        asks = {"page_size": 1000, "include_cancelled": True}
        await send(ledger, tenant, door, Request(kind="list", asks=asks), 30.0)
    for id in IDS:
        history = Request(kind="history", asks={"id": id, "page_size": PAGE})
        await send(ledger, tenant, tenant.doors[0], history, 30.0)
    for door in tenant.doors[: 2 * bool(tenant.webhook)]:
        # Only REST reads webhooks.
        if door.name.startswith("rest") and (
            problem := await _wait_for_webhook(ledger, tenant, door, give_up)
        ):
            return problem
    after = 0
    while True:
        request = Request(kind="replay", asks={"after_revision": after, "page_size": PAGE})
        call = await send(ledger, tenant, door, request, 30.0)
        if "entries" not in call.answer:
            return f"the history is not answered: {dict(call.answer)}"
        after += len(call.answer["entries"])
        if not call.answer["more"]:
            return ""


async def _wait_for_webhook(ledger: Ledger, tenant: Tenant, door: Door, give_up: float) -> str:
    """Wait until a webhook has sent all there is. Return what it has not."""
    while True:
        call = await send(ledger, tenant, door, Request(kind="webhook", asks=tenant.webhook), 3.0)
        if call.answer.get("delivered", -1) >= tenant.seen.revision:
            return ""
        if ledger.now() > give_up:
            return f"not everything was sent to the webhook: {dict(call.answer)}"
        await asyncio.sleep(0.2)
