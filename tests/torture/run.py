"""A run: clients, watchers and faults, until its time is over."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.stack import DATABASE
from service.verify.command import parse, verify
from tests.torture.clients import (
    Ledger,
    Tenant,
    read_everything,
    run_client,
    run_watcher,
    send,
)
from tests.torture.drawing import Drawing
from tests.torture.faults import CLOCK, SET_BACK, Faults
from tests.torture.hooks import Hook, Receiver
from tests.torture.record import Item, Recorder, Request, Run
from tests.torture.rest_door import RestDoor
from tests.torture.stage import Stage, stage
from tests.writes.values import Content, Write

# Seconds within which everything works again after a fault is undone.
RECOVERY = 60.0
PROBE = "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long a run lasts, in seconds, and how much happens in it."""

    seed: int
    duration: float
    faults: int
    # Calls in a second, if nothing fails.
    rate: float = 200.0
    organizations: int = 8
    clients: int = 48
    kinds: Sequence[str] = ()


@dataclass(slots=True)
class Outcome:
    """What a run tells besides its record."""

    faults: list[str] = field(default_factory=list)
    left_out: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0


async def run(plan: Plan, path: Path) -> Outcome:
    """Run and write the record to a file. Ctrl-C and SIGTERM undo everything that was started."""
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    dice = random.Random(plan.seed)
    outcome = Outcome()
    async with stage() as everything:
        faults = Faults(everything, dice)
        outcome.left_out = faults.left_out
        kinds = faults.plan(plan.faults, plan.kinds)
        with path.open("wb") as file:
            started = time.monotonic()
            described = Run(
                seed=plan.seed,
                started=time.time(),
                set_back=SET_BACK if CLOCK in kinds else 0.0,
                left_out=tuple(faults.left_out),
            )
            recorder = Recorder(file, described)
            ledger = Ledger(recorder, started)
            await _run(plan, everything, faults, kinds, ledger, recorder, outcome, dice)
            outcome.calls, outcome.seconds = ledger.count, ledger.now()
    return outcome


async def _run(
    plan: Plan,
    everything: Stage,
    faults: Faults,
    kinds: Sequence[str],
    ledger: Ledger,
    recorder: Recorder,
    outcome: Outcome,
    dice: random.Random,
) -> None:
    tenants = [
        Tenant(
            name=f"organization {number}",
            doors=everything.doors,
            accepting=everything.accepting[number % len(everything.accepting)],
        )
        for number in range(plan.organizations)
    ]
    receiver = Receiver(ledger, random.Random(plan.seed * 1000 + 500))
    await receiver.start()
    try:
        for tenant in tenants:
            await _add_webhook(tenant, receiver, dice)
        await _ask(plan, everything, faults, kinds, ledger, recorder, outcome, dice, tenants)
    finally:
        await receiver.stop()
    url = everything.databases.primary.url(DATABASE)
    if await asyncio.to_thread(verify, url, parse([])) != 0:
        outcome.problems.append("`python -m service verify` found what it has printed above")


async def _add_webhook(tenant: Tenant, receiver: Receiver, dice: random.Random) -> None:
    """Have the changes of an organization sent to the receiver, all or what a filter selects."""
    [door, *_] = [door for door in tenant.doors if isinstance(door, RestDoor)]
    asks = Drawing(dice, tenant.seen).watch(0)
    id, secret = await door.add_webhook(tenant.name, receiver.url(tenant.name), asks, seconds=30.0)
    tenant.webhook = {"webhook": id, **asks}
    receiver.expect(Hook(tenant.name, tenant.webhook, secret))


async def _ask(
    plan: Plan,
    everything: Stage,
    faults: Faults,
    kinds: Sequence[str],
    ledger: Ledger,
    recorder: Recorder,
    outcome: Outcome,
    dice: random.Random,
    tenants: Sequence[Tenant],
) -> None:
    """Make calls while faults strike, and at the end read all there is."""
    probe = Tenant(name=PROBE, doors=everything.doors, accepting=everything.accepting[0])
    over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(plan.clients):
            own = random.Random(plan.seed * 1000 + number)
            tenant = tenants[number % len(tenants)]
            tasks.create_task(run_client(ledger, tenant, own, plan.clients / plan.rate, over))
        for number, tenant in enumerate(tenants):
            own = random.Random(plan.seed * 1000 + 999 - number)
            tasks.create_task(run_watcher(ledger, tenant, own, over))
        try:
            await _strike(plan, faults, kinds, ledger, recorder, outcome, dice, probe)
            while ledger.now() < plan.duration:  # noqa: ASYNC110  # the clients' affair
                await asyncio.sleep(0.2)
        finally:
            over.set()
    for tenant in (*tenants, probe):
        if problem := await read_everything(ledger, tenant, within=RECOVERY):
            outcome.problems.append(f"{tenant.name}: {problem}")


async def _strike(
    plan: Plan,
    faults: Faults,
    kinds: Sequence[str],
    ledger: Ledger,
    recorder: Recorder,
    outcome: Outcome,
    dice: random.Random,
    probe: Tenant,
) -> None:
    """Let faults strike at random times, about evenly over the run."""
    for number, kind in enumerate(kinds):
        moment = plan.duration * (number + dice.uniform(0.1, 0.5)) / len(kinds)
        await asyncio.sleep(max(0.0, moment - ledger.now()))
        begin = ledger.now()
        async with faults.kinds[kind]() as name:
            sys.stdout.write(f"{begin:7.1f} s, {ledger.count:,} calls: {name}\n")
            sys.stdout.flush()
        undone = ledger.now()
        recorder.fault(name, begin, undone)
        outcome.faults.append(name)
        if problem := await _recovered(ledger, probe):
            outcome.problems.append(f"after {name}: {problem}")
        recovery = ledger.now() - undone
        sys.stdout.write(
            f"{'':10}undone after {undone - begin:.1f} s, recovered in {recovery:.1f} s\n"
        )


async def _recovered(ledger: Ledger, probe: Tenant) -> str:
    """Write through every door until each answers. Return what does not within the time."""
    give_up = ledger.now() + RECOVERY
    for door in probe.doors:
        while True:
            content = Content(start=0, end=1, title=str(ledger.count))
            item = Item(write=Write(kind="UPSERT", id="a", content=content))
            call = await send(ledger, probe, door, Request(kind="write", items=(item,)), 3.0)
            if call.answer.get("outcome"):
                break
            if ledger.now() > give_up:
                return f"{door.name} has not recovered within {RECOVERY:.0f} s: {dict(call.answer)}"
            await asyncio.sleep(0.2)
    return ""
