"""Admits calls within the rate limits of their credential and organization."""

import asyncio
import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NoReturn

import structlog

from service.errors import RateLimited, ServiceError
from service.limits.buckets import Buckets, Quota, RateLimit
from service.limits.store import BucketStore

INTERVAL = 0.1
"""Seconds between reports to the shared buckets."""
FORGET_INTERVAL = 600.0

log = structlog.get_logger()


class RateLimiter:
    """Limits the calls of each credential and of each organization, over all processes.

    A call is decided in memory. Each process reports to the shared buckets every INTERVAL, so
    several processes together may admit a little more than the limit for as long; the debt is
    paid back afterwards. While the database is unavailable, each process has the whole limit.
    """

    def __init__(
        self,
        store: BucketStore,
        *,
        credential: RateLimit | None,
        organization: RateLimit | None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._credential = Buckets(credential, clock) if credential else None
        self._organization = Buckets(organization, clock) if organization else None
        self._all = [each for each in (self._credential, self._organization) if each is not None]

    def admit(
        self, *, credential: str | None, organization: str | None, cost: int
    ) -> tuple[str, str] | None:
        """Count a call that costs as much as `cost` requests.

        Returns the values of the headers RateLimit-Policy and RateLimit, or None if the call has
        no limit: one without a credential has none of that kind. A call is admitted while
        anything is left, so a large batch leaves a debt. A refused call is not counted.
        Raises RateLimited.
        """
        keys = [
            (buckets, key)
            for buckets, key in (
                (self._credential, credential),
                (self._organization, organization),
            )
            if buckets is not None and key is not None
        ]
        quotas = [buckets.quota(key) for buckets, key in keys]
        refusing = max(quotas, key=lambda quota: quota.retry_after, default=None)
        if refusing is None:
            return None
        if refusing.retry_after > 0:
            limit = refusing.limit
            raise RateLimited(
                f"more than {limit.requests:,} calls in {limit.window:g} seconds for this"
                f" {limit.name}; nothing was written, try again later",
                retry_after=refusing.retry_after,
                headers=_headers(quotas),
            )
        return _headers([buckets.take(key, cost) for buckets, key in keys])

    async def run(self) -> NoReturn:
        """Exchange reports with the shared buckets until cancelled."""
        failing = False
        forgotten_at = monotonic()
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                for buckets in self._all:
                    await self._report(buckets)
                if monotonic() - forgotten_at > FORGET_INTERVAL:
                    forgotten_at = monotonic()
                    await self._store.forget()
            except ServiceError as error:
                if not failing:
                    log.warning("rate limits are not shared", error=error.message)
                failing = True
            else:
                failing = False

    async def _report(self, buckets: Buckets) -> None:
        used = buckets.report()
        if not used:
            return
        try:
            levels = await self._store.report(buckets.limit, used)
        except BaseException:
            buckets.retry(used)
            raise
        buckets.apply(levels)


def _headers(quotas: Sequence[Quota]) -> tuple[str, str]:
    """Return the values of the headers RateLimit-Policy and RateLimit.

    As in draft-ietf-httpapi-ratelimit-headers: the quota `q` in a window of `w` seconds; `r`
    requests remain, and after `t` seconds all of them are there again.
    """
    policy = ", ".join(
        f'"{each.limit.name}";q={each.limit.requests};w={math.ceil(each.limit.window)}'
        for each in quotas
    )
    left = ", ".join(
        f'"{each.limit.name}";r={each.remaining};t={math.ceil(each.reset)}' for each in quotas
    )
    return policy, left
