"""The moments of organizations, asked for in groups.

While one question is with the database further ones queue; when it returns, all that
queued go as the next one. Each is asked after its caller came, so it sees every write that
was answered before.
"""

import asyncio
from datetime import datetime

from service.errors import Overloaded
from service.postgres.database import Database

# What tells one state of an organization from every other one: its revision, and when
# that was recorded, since a restored database may count the same revisions again.
Moment = tuple[int, datetime | None]

NEVER_WRITTEN: Moment = (0, None)


class Moments:
    """Asks the database; at most `max_waiting` callers wait at a time."""

    def __init__(self, database: Database, *, max_waiting: int) -> None:
        self._database = database
        self._max_waiting = max_waiting
        self._waiting: list[tuple[str, asyncio.Future[Moment]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def of(self, organization_id: str) -> Moment:
        """Return the moment that an organization is at.

        Raises Overloaded, DatabaseUnavailable.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests wait for the database; try later")
        moment: asyncio.Future[Moment] = asyncio.get_running_loop().create_future()
        self._waiting.append((organization_id, moment))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        return await moment

    async def _ask(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    found = await self._database.fetch(
                        "SELECT organization_id, revision, recorded_at FROM organizations"
                        " WHERE organization_id = ANY (%s)",
                        (list({organization_id for organization_id, _ in waiting}),),
                    )
                    moments = {organization_id: (at, time) for organization_id, at, time in found}
                except Exception as error:  # noqa: BLE001  # each caller is to learn of it
                    for _, moment in waiting:
                        if not moment.done():
                            moment.set_exception(error)
                    continue
                for organization_id, moment in waiting:
                    if not moment.done():
                        moment.set_result(moments.get(organization_id, NEVER_WRITTEN))
        finally:
            self._asking = None
