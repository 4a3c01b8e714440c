"""Reads the moments of organizations in batches.

A moment is read after the call of `Moments.of`, so it includes every write that was completed
before.
"""

from collections.abc import Sequence
from datetime import datetime

from service.batcher import Batcher
from service.errors import Overloaded
from service.postgres.database import Database

# Identifies one state of an organization: its revision, and the time when that was recorded.
# The revision alone is not enough, since a restored database repeats revisions.
Moment = tuple[int, datetime | None]

NEVER_WRITTEN: Moment = (0, None)


class Moments:
    """Reads moments from the database. At most `max_waiting` callers wait at a time."""

    def __init__(self, database: Database, *, max_waiting: int) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._batcher = Batcher(self._fetch)

    async def of(self, organization_id: str) -> Moment:
        """Return the current moment of an organization.

        Raises Overloaded, DatabaseUnavailable.
        """
        waiting = self._batcher.waiting
        if waiting >= self._max_waiting:
            raise Overloaded(f"{waiting} requests wait for the database; try later")
        return await self._batcher.submit(organization_id)

    async def _fetch(self, organization_ids: Sequence[str]) -> list[Moment]:
        found = await self._database.fetch(
            "SELECT organization_id, revision, recorded_at FROM organizations"
            " WHERE organization_id = ANY (%s)",
            (list(set(organization_ids)),),
        )
        moments = {organization_id: (at, time) for organization_id, at, time in found}
        return [moments.get(organization_id, NEVER_WRITTEN) for organization_id in organization_ids]
