"""Reads of a revision that a replica may have shown before the primary does.

A replica replays a commit as soon as it receives it. The primary shows it once it is confirmed,
by the synchronous standby if there is one, and releases the organization's lock after that.
"""

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any, LiteralString

from service.errors import LockTimeout
from service.postgres.database import Database
from service.postgres.rows import Row

# Seconds to wait for a commit, and between two looks at it.
PATIENCE = 1.0
INTERVAL = 0.02

_NO_WRITE_IN_PROGRESS: LiteralString = "SELECT no_write_in_progress(%(organization_id)s::text)"


async def fetch_confirmed(
    primary: Database,
    organization_id: str,
    statement: LiteralString,
    parameters: Mapping[str, Any],
    *,
    revision: int,
    raw: bool = False,
) -> list[Row]:
    """Return the rows of a statement, whose first column is the organization's revision.

    If that is less than `revision`, no commit in progress can have it: it does not exist. Raises
    LockTimeout if that cannot be told, as writes are in progress, and what `Database.fetch` raises.
    """
    give_up = monotonic() + PATIENCE
    last = False
    while True:
        rows = await primary.fetch(organization_id, statement, parameters, raw=raw)
        if last or rows[0][0] >= revision:
            return rows
        # The next look sees what was committed before.
        [(last,)] = await primary.fetch(
            organization_id, _NO_WRITE_IN_PROGRESS, {"organization_id": organization_id}
        )
        if last:
            continue
        if monotonic() > give_up:
            raise LockTimeout(
                f"the revision {revision} is not confirmed yet, or does not exist; try again later"
            )
        await asyncio.sleep(INTERVAL)
