"""`python -m bench.abuse [NAME...]`: attack a running stack, and measure what others notice.

For each attack the latency of other organizations is measured first without it, then while it
lasts. The figures are the worst ratio of two p99 among Get, List and Upsert by gRPC and REST, the
failed calls of others, and the highest resident memory of each process.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import psutil
from aiohttp import ClientSession, TCPConnector

from bench.abuse import others
from bench.abuse.attacker import ATTACKS
from bench.abuse.others import Others
from bench.abuse.target import Target
from bench.measured import Latency
from bench.stack import Stack, database, stack
from bench.stored import preload
from local.programs import ROOT

PROGRAMS = ("service", "gateway", "worker")
SETTINGS = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "LOG_LEVEL": "warning"}
# Seconds from the start of an attack to the start of measuring, and until it is over at last.
RAMP, REST = 4.0, 2.0
IDLE = 0.1
"""Seconds of processor time per second of a program that has nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """What others notice of an attack."""

    kind: str
    """The kind of call with the worst ratio."""
    quiet: float
    during: float
    failed: dict[str, int]
    mib: dict[str, float]
    outcome: dict[str, Any]

    @property
    def ratio(self) -> float:
        return self.during / self.quiet


class Memory:
    """The highest resident memory of programs, looked at ten times a second."""

    def __init__(self, running: Stack) -> None:
        self._processes = {name: psutil.Process(running.processes[name]) for name in PROGRAMS}
        self.mib = dict.fromkeys(PROGRAMS, 0.0)

    async def watch(self) -> None:
        while True:
            for name, process in self._processes.items():
                size = process.memory_info().rss / 1024**2
                self.mib[name] = max(self.mib[name], size)
            await asyncio.sleep(0.1)


async def attack(
    running: Stack, name: str, callers: Others, seconds: float, rate: float
) -> Noticed:
    """Measure others without the attack, then during it."""
    quiet = await callers.measure(seconds, rate=rate)
    callers.errors.clear()
    memory = Memory(running)
    watching = asyncio.create_task(memory.watch())
    target = Target(gateway=running.gateway, service=running.service, seconds=RAMP + seconds + REST)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.abuse.attacker",
        name,
        json.dumps(asdict(target)),
        stdout=subprocess.PIPE,
    )
    try:
        await asyncio.sleep(RAMP)
        during = await callers.measure(seconds, rate=rate)
        output, _ = await attacker.communicate()
    finally:
        watching.cancel()
        if attacker.returncode is None:
            attacker.kill()
    p99 = {kind: (Latency.of(quiet[kind]).p99, Latency.of(during[kind]).p99) for kind in quiet}
    worst = max(p99, key=lambda kind: p99[kind][1] / p99[kind][0])
    return Noticed(
        kind=worst,
        quiet=p99[worst][0],
        during=p99[worst][1],
        failed=dict(callers.errors),
        mib=memory.mib,
        outcome=json.loads(output) if output else {},
    )


async def _attack_all(running: Stack, names: Sequence[str], seconds: float, rate: float) -> None:
    channel = grpc.aio.insecure_channel(running.service)
    async with channel, ClientSession(connector=TCPConnector(limit=0)) as session:
        callers = Others(running, channel, session)
        await callers.measure(3, rate=rate)  # connections are opened and plans made
        for name in names:
            noticed = await attack(running, name, callers, seconds, rate)
            memory = ", ".join(f"{program} {size:.0f}" for program, size in noticed.mib.items())
            click.echo(
                f"{name:20} p99 {noticed.ratio:5.1f} times ({noticed.kind},"
                f" {noticed.quiet:.0f} to {noticed.during:.0f} ms)"
                f"  MiB: {memory}  failed: {noticed.failed or 'none'}  {noticed.outcome}"
            )
            await _settle(running)


async def _settle(running: Stack) -> None:
    """Wait until the programs have ended what the attack left, for at most a minute."""
    for _ in range(60):
        before = running.cpu_seconds()
        await asyncio.sleep(1)
        spent = running.cpu_seconds_since(before)
        if max(spent[name] for name in PROGRAMS) < IDLE:
            return


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ATTACKS)))
@click.option("--seconds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--rate", default=20.0, show_default=True, help="Calls of each kind per second.")
@click.option("--set", "settings", nargs=2, multiple=True, help="A setting of the programs.")
def main(
    *,
    names: tuple[str, ...],
    seconds: int,
    rate: float,
    settings: tuple[tuple[str, str], ...],
) -> None:
    """Attack a service, a gateway and a worker of their own, in all ways or by name."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="abuse-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with database(directory) as (url, postgres):
            preload(url, others.PREFIX, organizations=others.ORGANIZATIONS, stored=others.STORED)
            preload(url, "dear", organizations=1, stored=100_000, resources=100)
            with stack(url, postgres, {**SETTINGS, **dict(settings)}, directory) as running:
                running.worker.start()
                asyncio.run(_attack_all(running, names or list(ATTACKS), seconds, rate))


if __name__ == "__main__":
    main()
