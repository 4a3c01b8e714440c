"""One of several processes: what its supervisor wants of it, and its end when that ends."""

import asyncio
import contextlib
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

from prometheus_client import Gauge, values

_VARIABLE = "SUPERVISED_PROCESS"
_SHARING_INTERVAL = 1.0
# Standard input is a socket to the supervisor; it breaks when either of the two ends.
_SUPERVISOR = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """One of several processes; its place among them is `index`, whoever held it before."""

    index: int
    # What it takes in place of the environment's.
    settings: dict[str, Any]
    # Where its metrics go for the supervisor to read; None if nobody does.
    metrics_directory: str | None

    @classmethod
    def current(cls) -> Self | None:
        """Return this process's part, or None if no supervisor has started it.

        Call it once, before any metric is made. From then on the process ends at once
        when the supervisor has ended, however that came about.
        """
        given = os.environ.get(_VARIABLE)
        if not given:
            return None
        supervised = cls(**json.loads(given))
        if supervised.metrics_directory is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = supervised.metrics_directory
            # Files by place, not by process id: who follows a dead one counts on from there.
            values.ValueClass = values.MultiProcessValue(lambda: supervised.index)  # type: ignore[no-untyped-call]
        threading.Thread(
            target=supervised._end_with_supervisor, name="supervisor", daemon=True
        ).start()
        return supervised

    def environment(self) -> dict[str, str]:
        """Return what makes a new process this one."""
        return {_VARIABLE: json.dumps(asdict(self))}

    def tell(self, event: str, **fields: object) -> None:
        """Let the supervisor know; it waits for `listening`."""
        with contextlib.suppress(OSError):
            os.write(_SUPERVISOR, json.dumps({"event": event, **fields}).encode() + b"\n")

    def _end_with_supervisor(self) -> None:
        with contextlib.suppress(OSError):
            os.read(_SUPERVISOR, 1)  # it never writes
        if self.metrics_directory is not None:
            shutil.rmtree(self.metrics_directory, ignore_errors=True)
        os._exit(1)


async def share_gauges(*gauges: Gauge) -> NoReturn:
    """Write what the gauges' functions say, every second, to where the supervisor reads it.

    In prometheus_client's multiprocess mode a function is asked only in its own process.
    """
    while True:
        for gauge in gauges:
            for metric in gauge.collect():
                for sample in metric.samples:
                    shared = gauge.labels(**sample.labels) if sample.labels else gauge
                    shared.set(sample.value)
        await asyncio.sleep(_SHARING_INTERVAL)
