"""Reads the moments of organizations in batches.

A moment is read after the call of `Moments.of`, so it includes every write that was completed
before.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from service.batcher import Batcher
from service.postgres.database import Database

# Identifies one state of an organization: its revision, and the time when that was recorded.
# The revision alone is not enough, since a restored database repeats revisions.
Moment = tuple[int, datetime | None]

NEVER_WRITTEN: Moment = (0, None)


class Now(NamedTuple):
    """The moment of an organization, and the time of the database when it was read.

    `clock` is never before the moment's own time. It is None before the first revision.
    """

    moment: Moment
    clock: datetime | None

    def shows(self, moment: Moment, first_expiry: datetime | None) -> bool:
        """Return whether what was read at a moment is still valid.

        `first_expiry` is when the first hold expires that was read, None without holds: a hold
        expires without a change of the moment.
        """
        return self.moment == moment and (
            first_expiry is None or (self.clock is not None and self.clock < first_expiry)
        )


class Moments:
    """Reads moments. As many callers may wait as statements may wait for a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batcher = Batcher(self._fetch, gather=True, max_waiting=database.max_waiting)

    async def of(self, organization_id: str) -> Now:
        """Return the current moment of an organization.

        Raises Overloaded, DatabaseUnavailable.
        """
        return await self._batcher.submit(organization_id)

    async def _fetch(self, organization_ids: Sequence[str]) -> list[Now]:
        found = await self._database.fetch_across(
            "SELECT organization_id, revision, recorded_at, clock"
            " FROM organization_moments(%s::text[])",
            (list(set(organization_ids)),),
        )
        known = {name: Now((revision, time), clock) for name, revision, time, clock in found}
        never = Now(NEVER_WRITTEN, None)
        return [known.get(organization_id, never) for organization_id in organization_ids]
