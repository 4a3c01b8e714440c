"""Checks API keys against a copy of their table, which is read again every second.

The copy holds every key, so a key that does not exist costs no query. A process whose copy is
too old refuses all keys, because one of them may have been revoked meanwhile.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from math import inf
from time import monotonic
from typing import NoReturn

import structlog

from service.access.api_key import read_key, unchecked_key
from service.access.principal import Principal
from service.batcher import Batcher
from service.errors import AccessUnavailable, Overloaded, ServiceError, Unauthenticated
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.rows import Row

# Seconds between reads of the changes.
POLL_INTERVAL = 1.0
# Seconds for which a copy is used after the read began that confirmed it. With the interval at
# which streams are checked, a revoked key is refused after less than five seconds.
MAX_AGE = 3.0
# Seconds between the starts of two reads, of which unknown keys cause some.
MIN_INTERVAL = 0.1
# Calls with an unknown key that wait for a read.
MAX_WAITING = 1000

log = structlog.get_logger()

# The version and the id of a key.
Mark = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    principal: Principal
    digest: bytes
    former: bytes | None
    former_until: datetime | None
    expires_at: datetime | None
    revoked: bool

    def accepts(self, digest: bytes) -> bool:
        """Return whether the key is valid, and this the digest of its latest secret."""
        return (
            compare_digest(digest, self.digest)
            and not self.revoked
            and (self.expires_at is None or self.expires_at > datetime.now(UTC))
        )

    def knows(self, digest: bytes) -> bool:
        """Return whether a digest is that of the key, before or after its last rotation."""
        return compare_digest(digest, self.digest) or self._is_former(digest)

    def check(self, digest: bytes, now: datetime) -> Principal:
        """Return the caller with a digest that is known. Raises Unauthenticated."""
        if self.revoked:
            raise Unauthenticated("the API key was revoked")
        if self.expires_at is not None and self.expires_at <= now:
            raise Unauthenticated("the API key has expired")
        if self._is_former(digest) and (self.former_until is None or self.former_until <= now):
            raise Unauthenticated("the API key was rotated; use the new one")
        return self.principal

    def _is_former(self, digest: bytes) -> bool:
        return self.former is not None and compare_digest(digest, self.former)


class ApiKeys:
    """Checks API keys. `follow` has to run all the time."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._keys: dict[str, _Key] = {}
        # The latest change that was read. If the database no longer has it, it was restored.
        self._latest: Mark | None = None
        # When the last successful read began, and when any did.
        self._confirmed = -inf
        self._began = -inf
        self._failing = False
        self._reads: Batcher[None, None] = Batcher(self._read)
        metrics.api_keys_age_seconds.set_function(self._age)

    async def load(self) -> None:
        """Read the keys that have changed. A failure is logged."""
        try:
            await self._reads.submit(None)
        except ServiceError as error:
            if not self._failing:
                self._failing = True
                log.warning("API keys cannot be read; they are refused soon", error=error.message)
        else:
            if self._failing:
                self._failing = False
                log.info("API keys can be read again")

    async def follow(self) -> NoReturn:
        """Read the changes every second, until cancelled."""
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            await self.load()

    async def check(self, text: str) -> Principal:
        """Return the caller with a key. Raises Unauthenticated, AccessUnavailable, Overloaded.

        Every change of a key that was committed more than MAX_AGE ago counts, and every key that
        was created or rotated before the call.
        """
        # Nearly all calls end here. The digest is of the whole text, so its form needs no check.
        given = unchecked_key(text)
        known = self._keys.get(given.id)
        if known is not None and known.accepts(given.digest):
            self._check_age()
            return known.principal
        key = read_key(text)
        if key is None:
            raise Unauthenticated("the API key is not complete, or has a typing error")
        self._check_age()
        digest = key.digest
        known = self._keys.get(key.id)
        if known is None or not known.knows(digest):
            await self._look_again()
            known = self._keys.get(key.id)
        if known is None or not known.knows(digest):
            raise Unauthenticated("the API key is not known")
        return known.check(digest, datetime.now(UTC))

    async def _look_again(self) -> None:
        """Read the changes, as a key may be newer than the copy."""
        if self._reads.waiting >= MAX_WAITING:
            raise Overloaded("too many calls have an API key that is not known; try again later")
        try:
            await self._reads.submit(None)
        except ServiceError as error:
            raise AccessUnavailable(
                "the API key cannot be checked, as the database does not answer; nothing was"
                " written, try again later"
            ) from error

    def _age(self) -> float:
        return monotonic() - self._confirmed

    def _check_age(self) -> None:
        if self._age() > MAX_AGE:
            raise AccessUnavailable(
                f"API keys cannot be checked, as the database has not answered for {MAX_AGE:g} s;"
                " nothing was written, try again later"
            )

    async def _read(self, waiting: Sequence[None]) -> Sequence[None]:
        """Read the changes since the last read, once for all who wait."""
        await asyncio.sleep(self._began + MIN_INTERVAL - monotonic())
        self._began = began = monotonic()
        changes = await self._changes(self._latest)
        if self._latest is not None and (not changes or _mark(changes[0]) != self._latest):
            log.warning("the latest API key is gone, as after a restore; all are read again")
            changes = await self._changes(None)
            self._keys.clear()
        for change in changes:
            self._keys[change[1]] = _stored(change)
        self._latest = _mark(changes[-1]) if changes else None
        self._confirmed = began
        return waiting

    async def _changes(self, latest: Mark | None) -> list[Row]:
        """Return the keys that have changed, and the one that was the latest before."""
        return await self._database.fetch_across(
            "SELECT version, key_id, subject, organizations, scopes, secret_hash,"
            " former_secret_hash, former_secret_until, expires_at, revoked_at IS NOT NULL"
            " FROM public.api_keys WHERE version >= %s ORDER BY version",
            (0 if latest is None else latest[0],),
        )


def _mark(row: Row) -> Mark:
    return row[0], row[1]


def _stored(row: Row) -> _Key:
    _, key_id, subject, organizations, scopes, digest, former, former_until, expires_at, revoked = (
        row
    )
    return _Key(
        principal=Principal(
            subject=subject,
            credential_id=f"key:{key_id}",
            organizations=None if organizations is None else frozenset(organizations),
            scopes=frozenset(scopes),
        ),
        digest=digest,
        former=former,
        former_until=former_until,
        expires_at=expires_at,
        revoked=revoked,
    )
