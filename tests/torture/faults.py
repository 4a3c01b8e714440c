"""Faults, each with its undo."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path

import psutil

from local.programs import StartError
from tests.torture.proxy import Proxy, Way
from tests.torture.stage import Stage

# Seconds by which the database's clock is set back.
SET_BACK = 30.0
CLOCK = "set the clock back"

Fault = Callable[[], AbstractAsyncContextManager[str]]


def faketime() -> Path | None:
    """Return the library that changes a program's clock, None if it is not installed."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Faults:
    """The faults that this machine can have, by their kind.

    Each is a context manager: a fault at its begin, undone at its end. It yields what it is.
    """

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self._stage = stage
        self._databases = stage.databases
        self._dice = dice
        # What this machine cannot do, with what it lacks.
        self.left_out: list[str] = []
        self.kinds: dict[str, Fault] = {
            "kill a program": self._killed_program,
            "restart a program": self._restarted_program,
            "kill the primary": self._killed_primary,
            "stop a program": self._stopped_program,
            "stop the primary": lambda: self._stopped("primary", self._dice.uniform(1, 6)),
            "stop the standby": lambda: self._stopped("standby", self._dice.uniform(1, 5)),
            "cut connections": self._cut,
            "delay connections": self._delayed,
            "swallow what is sent": self._swallowed,
            "fail over": self._failed_over,
            "fail over to a standby that was killed first": self._failed_over_late,
            "kill everything": self._killed_all,
        }
        if self._databases.disks[0].mounted:
            self.kinds["fill the disk"] = self._full_disk
        else:
            self.left_out.append("fill the disk: mounting a file system needs root on Linux")
        if stage.broker is not None:
            self.kinds["kill the broker"] = self._killed_broker
            self.kinds["stop the broker"] = self._stopped_broker
        else:
            self.left_out.append("kill or stop the broker: rabbitmq-server is not installed")
        if faketime() is not None:
            self.kinds[CLOCK] = self._set_back
        else:
            self.left_out.append("set the clock back: libfaketime is not installed")

    def plan(self, count: int, only: Sequence[str]) -> list[str]:
        """Return kinds of faults in a random order, each about as often as any other.

        Raises StartError for a kind that this machine cannot have.
        """
        if unknown := set(only) - self.kinds.keys():
            known = ", ".join(map(repr, self.kinds))
            raise StartError(f"there is no fault {', '.join(map(repr, unknown))}, only {known}")
        kinds: list[str] = []
        while len(kinds) < count:
            kinds += self._dice.sample(sorted(only or self.kinds), len(only or self.kinds))
        return kinds[:count]

    def _pause(self, least: float, most: float) -> "asyncio.Future[None]":
        return asyncio.ensure_future(asyncio.sleep(self._dice.uniform(least, most)))

    def _part(self) -> str:
        return self._dice.choice(sorted(self._stage.programs))

    @asynccontextmanager
    async def _killed_program(self) -> AsyncIterator[str]:
        part = self._part()
        await asyncio.to_thread(self._stage.kill, part)
        try:
            yield f"kill {part}"
            await self._pause(0, 2)
        finally:
            await asyncio.to_thread(self._stage.start, part)

    @asynccontextmanager
    async def _restarted_program(self) -> AsyncIterator[str]:
        """End a program in its own way, which finishes the calls that it has accepted."""
        part = self._part()
        yield f"restart {part}"
        code = await asyncio.to_thread(self._stage.programs[part].stop)
        assert code == 0, f"{part} ended with {code}"
        await asyncio.to_thread(self._stage.start, part)

    @asynccontextmanager
    async def _killed_all(self) -> AsyncIterator[str]:
        parts = sorted(self._stage.programs)
        self._kill_primary()
        for part in parts:
            await asyncio.to_thread(self._stage.kill, part)
        try:
            yield "kill the primary and all programs"
        finally:
            await asyncio.to_thread(self._databases.restart_primary)
            for part in parts:
                await asyncio.to_thread(self._stage.start, part)

    @asynccontextmanager
    async def _killed_primary(self) -> AsyncIterator[str]:
        self._kill_primary()
        try:
            yield "kill the postmaster of the primary"
            await self._pause(0, 2)
        finally:
            await asyncio.to_thread(self._databases.restart_primary)

    def _kill_primary(self) -> None:
        pid = self._databases.primary.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    @asynccontextmanager
    async def _stopped_program(self) -> AsyncIterator[str]:
        async with self._stopped(self._part(), self._dice.uniform(1, 8)) as name:
            yield name

    @asynccontextmanager
    async def _stopped(self, part: str, seconds: float) -> AsyncIterator[str]:
        """Suspend all processes of a part."""
        with _suspended(self._stage.processes(part)):
            yield f"stop {part} for {seconds:.1f} s"
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def _stopped_broker(self) -> AsyncIterator[str]:
        assert self._stage.broker is not None
        with _suspended([psutil.Process(self._stage.broker.pid)]):
            yield "stop RabbitMQ"
            await self._pause(1, 6)

    @asynccontextmanager
    async def _killed_broker(self) -> AsyncIterator[str]:
        broker = self._stage.broker
        assert broker is not None
        await asyncio.to_thread(broker.kill)
        try:
            yield "kill RabbitMQ"
            await self._pause(0, 3)
        finally:
            await asyncio.to_thread(broker.start)

    def _proxy(self) -> Proxy:
        return self._dice.choice(self._stage.proxies)

    @asynccontextmanager
    async def _cut(self) -> AsyncIterator[str]:
        """Cut connections again and again, each time after another number of bytes."""
        proxy, way = self._proxy(), self._dice.choice(list(Way))
        times = self._dice.randint(1, 6)
        try:
            yield f"cut the connections of {proxy.name}, {way.value}, {times} times"
            for _ in range(times):
                proxy.cut_after(way, self._dice.choice((1, 100, 5_000, 50_000)))
                await self._pause(0.2, 1)
        finally:
            proxy.release()

    @asynccontextmanager
    async def _delayed(self) -> AsyncIterator[str]:
        proxy, way = self._proxy(), self._dice.choice(list(Way))
        seconds = self._dice.uniform(0.5, 9)
        proxy.hold(way)
        try:
            yield f"delay {proxy.name}, {way.value}, for {seconds:.1f} s"
            await asyncio.sleep(seconds)
        finally:
            proxy.release()

    @asynccontextmanager
    async def _swallowed(self) -> AsyncIterator[str]:
        proxy, way = self._proxy(), self._dice.choice(list(Way))
        seconds = self._dice.uniform(0.5, 9)
        proxy.swallow(way)
        try:
            yield f"swallow what {proxy.name} gets, {way.value}, for {seconds:.1f} s"
            await asyncio.sleep(seconds)
        finally:
            proxy.release()

    @asynccontextmanager
    async def _full_disk(self) -> AsyncIterator[str]:
        disk = self._databases.disks[self._databases.place]
        await asyncio.to_thread(disk.fill)
        try:
            yield "fill the disk of the primary"
            await self._pause(2, 6)
        finally:
            await asyncio.to_thread(disk.clear)
            # It ends itself if it has no room for its log.
            await asyncio.to_thread(self._databases.restart_primary)

    @asynccontextmanager
    async def _failed_over(self) -> AsyncIterator[str]:
        self._kill_primary()
        try:
            yield "kill the primary and promote the standby"
        finally:
            await asyncio.to_thread(self._databases.promote)
            await self._pause(0, 3)
            await asyncio.to_thread(self._databases.add_standby)

    @asynccontextmanager
    async def _failed_over_late(self) -> AsyncIterator[str]:
        """Let commits wait without a standby for longer than callers do, then promote it."""
        standby = self._databases.standby
        assert standby is not None
        await asyncio.to_thread(standby.stop, immediate=True)
        try:
            yield "kill the standby, then the primary, and promote the standby"
            await self._pause(6, 10)
        finally:
            self._kill_primary()
            await asyncio.to_thread(self._databases.primary.stop, immediate=True)
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(self._databases.promote)
            await asyncio.to_thread(self._databases.add_standby)

    @asynccontextmanager
    async def _set_back(self) -> AsyncIterator[str]:
        library = faketime()
        primary = self._databases.primary
        primary.environment |= {
            "LD_PRELOAD": str(library),
            "FAKETIME": f"-{SET_BACK:.0f}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        try:
            await asyncio.to_thread(self._databases.restart_primary)
            yield f"set the clock of the primary back by {SET_BACK:.0f} s"
            await self._pause(2, 8)
        finally:
            primary.environment.clear()
            former = primary.pid
            await asyncio.to_thread(self._databases.restart_primary)
            _remove_shared(former)


def _remove_shared(pid: int | None) -> None:
    """Remove what libfaketime leaves behind when a server is killed."""
    for shared in Path("/dev/shm").glob(f"*faketime*_{pid}"):  # noqa: S108
        shared.unlink(missing_ok=True)


@contextmanager
def _suspended(processes: list[psutil.Process]) -> Iterator[None]:
    """Suspend processes, those first that start others."""
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
