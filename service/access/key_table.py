"""Creates, lists, rotates and revokes API keys, with the login of their table's owner."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import Connection
from psycopg.rows import class_row

from service.access.api_key import ApiKey, new_id, new_key


class KeyNotFound(Exception):
    """There is no such key, or it cannot be rotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A stored key. `organizations` is None for all; `now` is the database's clock."""

    key_id: str
    subject: str
    organizations: list[str] | None
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    former_secret_until: datetime | None
    now: datetime

    @property
    def state(self) -> str:
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= self.now:
            return "expired"
        if self.former_secret_until is not None and self.former_secret_until > self.now:
            return "rotating"
        return "valid"


class KeyTable:
    """The table of API keys. Services notice a committed change within seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(
        self,
        *,
        subject: str,
        organizations: Sequence[str] | None,
        scopes: Sequence[str],
        expires_in: timedelta | None,
    ) -> ApiKey:
        """Store a new key and return it. Its secret cannot be read again."""
        key = new_key(new_id())
        self._connection.execute(
            "INSERT INTO api_keys (key_id, subject, organizations, scopes, secret_hash, expires_at)"
            " VALUES (%s, %s, %s, %s, %s, now() + %s)",
            (
                key.id,
                subject,
                None if organizations is None else list(organizations),
                list(scopes),
                key.digest,
                expires_in,
            ),
        )
        return key

    def list(self) -> list[StoredKey]:
        """Return all keys, the oldest first."""
        with self._connection.cursor(row_factory=class_row(StoredKey)) as cursor:
            return cursor.execute(
                "SELECT key_id, subject, organizations, scopes, created_at, expires_at,"
                " revoked_at, former_secret_until, now() FROM api_keys ORDER BY created_at, key_id"
            ).fetchall()

    def rotate(self, id: str, *, overlap: timedelta) -> ApiKey:
        """Return a key with a new secret. The old one stays valid for `overlap`.

        Raises KeyNotFound, also for a key that was revoked or has expired.
        """
        key = new_key(id)
        updated = self._connection.execute(
            "UPDATE api_keys SET secret_hash = %s, former_secret_hash = secret_hash,"
            " former_secret_until = now() + %s WHERE key_id = %s AND revoked_at IS NULL"
            " AND (expires_at IS NULL OR expires_at > now())",
            (key.digest, overlap, id),
        )
        if updated.rowcount == 0:
            raise KeyNotFound(f"there is no key {id}, or it was revoked or has expired")
        return key

    def revoke(self, id: str) -> None:
        """Revoke a key. Once more, nothing changes. Raises KeyNotFound."""
        updated = self._connection.execute(
            "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE key_id = %s", (id,)
        )
        if updated.rowcount == 0:
            raise KeyNotFound(f"there is no key {id}")
