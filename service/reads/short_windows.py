"""Reads what occupies resources within short windows of time in batches.

One statement at a time of an organization reads for all of its queries that wait. It begins after
they did, so each includes every write that was completed before.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from weakref import WeakValueDictionary

from service.batcher import Batcher
from service.reads import occupied
from service.reads.occupied import Occupied, Wanted
from service.reads.store import Page, ReadStore

# Bounds the time of a statement, and how many answers are computed one after another.
MOST = 8


class ShortWindows:
    """Reads the latest state. `slots` limits the statements of all organizations."""

    def __init__(self, reads: ReadStore, slots: asyncio.Semaphore) -> None:
        self._reads = reads
        self._slots = slots
        # By organization, while it has queries.
        self._batchers: WeakValueDictionary[str, Batcher[Wanted, Page[Occupied]]] = (
            WeakValueDictionary()
        )

    async def occupied(self, organization_id: str, wanted: Wanted) -> Page[Occupied]:
        """Return what occupies resources.

        Raises Overloaded, DatabaseUnavailable.
        """
        batcher = self._batchers.get(organization_id)
        if batcher is None:
            batcher = self._batchers[organization_id] = Batcher(
                partial(self._read, organization_id),
                most=MOST,
                gather=True,
                max_waiting=self._reads.max_waiting,
            )
        return await batcher.submit_sql(wanted, occupied.SEVERAL)

    async def _read(
        self, organization_id: str, wanted: Sequence[Wanted]
    ) -> Sequence[Page[Occupied]]:
        async with self._slots:
            return await self._reads.occupied_of_several(organization_id, wanted)
