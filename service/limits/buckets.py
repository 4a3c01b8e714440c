"""Token buckets of one process, which follow those that all processes share."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import floor

MAX_KEYS = 100_000
"""Buckets in memory. The one that was used least recently is dropped first."""
SWEPT = 1_000
"""Full buckets that are dropped at a time."""
UNREPORTED = 0.2
"""The part of a burst that a process admits before it reports it. Below half of a burst, it
reports every request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """A limit of `requests` in `window` seconds for each key: a credential or an organization.

    Requests are admitted at an even rate. A tenth of them, or ten, may come at once.
    """

    name: str
    requests: int
    window: float

    @property
    def rate(self) -> float:
        """The requests per second."""
        return self.requests / self.window

    @property
    def burst(self) -> float:
        """The requests that may come at once after a pause."""
        return max(self.requests / 10, min(self.requests, 10))

    def bucket_of(self, key: str) -> bytes:
        """Return the name of a key's bucket, from which the key cannot be read."""
        return sha256(f"{self.name}\0{key}".encode()).digest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a limit leaves: the `remaining` requests, and the seconds until all are there again.

    `retry_after` (seconds) is 0 if a request is admitted now.
    """

    limit: RateLimit
    remaining: int
    reset: float
    retry_after: float


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_at: float
    unreported: float = 0.0


class Buckets:
    """The buckets of one limit. `clock` returns seconds.

    A request is decided in memory. A bucket that is used faster than a fraction of its rate is
    reported, at the next call of `report`, to the buckets that all processes share; their
    response has what others used. A level below zero is a debt: it is waited for.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float]) -> None:
        self.limit = limit
        self._clock = clock
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()
        self._due: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._buckets)

    def quota(self, key: str) -> Quota:
        """Return what is left for a key, without taking any."""
        bucket = self._buckets.get(self.limit.bucket_of(key))
        return self._quota(self.limit.burst if bucket is None else self._filled(bucket))

    def take(self, key: str, cost: int) -> Quota:
        """Take `cost` requests, which may leave a debt, and return what is left then."""
        name = self.limit.bucket_of(key)
        bucket = self._buckets.get(name)
        if bucket is None:
            while len(self._buckets) >= MAX_KEYS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[name] = _Bucket(self.limit.burst, self._clock())
        else:
            self._buckets.move_to_end(name)
            self._filled(bucket)
        bucket.level -= cost
        bucket.unreported += cost
        if (
            bucket.unreported >= self.limit.burst * UNREPORTED
            or bucket.level < self.limit.burst / 2
        ):
            self._due.add(name)
        return self._quota(bucket.level)

    def report(self) -> Mapping[bytes, float]:
        """Return what was taken from each bucket that has to be reported. Drops full buckets.

        `apply` or `retry` has to follow.
        """
        for name in list(self._full()):
            del self._buckets[name]
        used: dict[bytes, float] = {}
        for name in self._due:
            if (bucket := self._buckets.get(name)) is not None:
                used[name] = bucket.unreported
                bucket.unreported = 0.0
        self._due.clear()
        return used

    def apply(self, levels: Mapping[bytes, float]) -> None:
        """Take over the shared levels, which contain what was reported."""
        now = self._clock()
        for name, level in levels.items():
            bucket = self._buckets.get(name)
            if bucket is not None:
                bucket.level, bucket.filled_at = level - bucket.unreported, now

    def retry(self, used: Mapping[bytes, float]) -> None:
        """Report again what could not be reported."""
        for name, unreported in used.items():
            bucket = self._buckets.get(name)
            if bucket is not None:
                bucket.unreported += unreported
                self._due.add(name)

    def _quota(self, level: float) -> Quota:
        return Quota(
            limit=self.limit,
            remaining=max(0, floor(level)),
            reset=max(0.0, self.limit.burst - level) / self.limit.rate,
            retry_after=max(0.0, 1.0 - level) / self.limit.rate,
        )

    def _filled(self, bucket: _Bucket) -> float:
        now = self._clock()
        bucket.level = min(
            self.limit.burst, bucket.level + (now - bucket.filled_at) * self.limit.rate
        )
        bucket.filled_at = now
        return bucket.level

    def _full(self) -> Iterator[bytes]:
        """Return the first buckets that are full again: they are like new ones."""
        for _, (name, bucket) in zip(range(SWEPT), self._buckets.items(), strict=False):
            if self._filled(bucket) < self.limit.burst:
                return
            yield name
