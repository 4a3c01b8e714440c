"""The buckets that all processes share, in the database."""

from collections.abc import Mapping

from service.limits.buckets import RateLimit
from service.postgres.database import Database

KEPT = 3600.0
"""Seconds after which an unused bucket, long full again, is deleted."""

# In the order of their names, so that two processes never wait for each other.
_REPORT = """
    INSERT INTO public.request_buckets AS stored (name, level, counted_at)
    SELECT reported.name, %(burst)s - reported.used, clock_timestamp()
    FROM unnest(%(names)s::bytea[], %(used)s::float8[]) AS reported (name, used)
    ORDER BY reported.name
    ON CONFLICT (name) DO UPDATE SET
        level = excluded.level - %(burst)s + least(
            %(burst)s,
            stored.level + %(rate)s * greatest(
                0, extract(epoch FROM excluded.counted_at - stored.counted_at)::float8
            )
        ),
        counted_at = greatest(stored.counted_at, excluded.counted_at)
    RETURNING name, level
"""

_FORGET = """
    DELETE FROM public.request_buckets
    WHERE counted_at < clock_timestamp() - make_interval(secs => %(kept)s)
"""


class BucketStore:
    """Reads and writes shared buckets. All times are those of the database's clock."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(self, limit: RateLimit, used: Mapping[bytes, float]) -> Mapping[bytes, float]:
        """Take what was used from each bucket, and return the levels. Raises ServiceError."""
        rows = await self._database.fetch_across(
            _REPORT,
            {
                "names": list(used),
                "used": list(used.values()),
                "burst": limit.burst,
                "rate": limit.rate,
            },
        )
        return dict(rows)

    async def forget(self) -> None:
        """Delete the buckets that were not used for long. Raises ServiceError."""
        await self._database.fetch_across(_FORGET, {"kept": KEPT})
