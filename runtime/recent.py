"""A cache that drops what has not been used for a while, besides what is too much."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

# Seconds. So no process keeps what was erased in the database for much longer.
MAX_IDLE = 10.0

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    size: int
    used: float


class Recent(Generic[K, V]):
    """Values by key, the least recently used first. Needs a running event loop.

    Drops a value that was not used for `max_idle` seconds, and the least recently used ones while
    the sizes of all exceed `max_size`. The one added last stays until then, whatever its size.
    """

    def __init__(self, *, max_size: int, max_idle: float = MAX_IDLE) -> None:
        self._max_size = max_size
        self._max_idle = max_idle
        self._size = 0
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def get(self, key: K) -> V | None:
        """Return a value, and count that as its use."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        entry.used = monotonic()
        return entry.value

    def put(self, key: K, value: V, *, size: int = 1) -> None:
        """Add or replace a value."""
        self.drop(key)
        self._entries[key] = _Entry(value, size, monotonic())
        self._size += size
        while self._size > self._max_size and len(self._entries) > 1:
            self.drop(next(iter(self._entries)))
        if self._timer is None:
            self._wait(self._max_idle)

    def drop(self, key: K) -> None:
        """Remove a value, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry.size

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._drop_idle)

    def _drop_idle(self) -> None:
        self._timer = None
        now = monotonic()
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            remaining = oldest.used + self._max_idle - now
            if remaining > 0:
                self._wait(remaining)
                return
            self.drop(key)
