"""Epochs: which history of the database a revision belongs to.

A restored database counts the lost revisions again, for other changes, in another epoch. An epoch
is empty until the first restore, then the time at which it began. A connection reads it when it is
made. That is enough, since an epoch begins while nobody else is connected (new_epoch.py).
"""

from datetime import UTC, datetime
from typing import LiteralString

from service.postgres.session import Session

FIRST = ""

_FORMAT = "%Y%m%dT%H%M%SZ"

_CURRENT: LiteralString = "SELECT max(began_at) FROM public.epochs"


async def current_epoch(session: Session) -> str:
    """Return the epoch of a database, for a session with a role of the service."""
    [(found,)] = await session.fetch(_CURRENT)
    began_at: datetime | None = found
    return FIRST if began_at is None else began_at.astimezone(UTC).strftime(_FORMAT)


def began(epoch: str) -> datetime | None:
    """Return when an epoch began, None for the first one."""
    return None if epoch == FIRST else datetime.strptime(epoch, _FORMAT).replace(tzinfo=UTC)
