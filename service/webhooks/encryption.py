"""Encryption of the secrets and header values of webhooks in the database.

A stored value is `encrypted§KEY§TOKEN`, with the id of its key and a Fernet token, or plain text.
No secret and no header value contains the sign §.
"""

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256

from cryptography.fernet import Fernet, InvalidToken

PREFIX = "encrypted§"
KEY_BYTES = 32
SETTING = "SECRETS_KEYS"


class SecretUnreadable(Exception):
    """A stored secret cannot be decrypted. The message names the setting, and no secret."""


class SecretKeys:
    """Keys in the order of the setting: the first encrypts, all decrypt.

    Without keys, values are stored as they are.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {_id_of(key): Fernet(base64.urlsafe_b64encode(key)) for key in keys}
        self.current = next(iter(self._keys), None)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def encrypt(self, value: str) -> str:
        """Return a value as it is to be stored."""
        if self.current is None:
            return value
        token = self._keys[self.current].encrypt(value.encode()).decode()
        return f"{PREFIX}{self.current}§{token}"

    def decrypt(self, stored: str) -> str:
        """Return a value as it was before it was stored. Raises SecretUnreadable."""
        if not stored.startswith(PREFIX):
            return stored
        key_id, _, token = stored.removeprefix(PREFIX).partition("§")
        if key_id not in self._keys:
            raise SecretUnreadable(missing([key_id]))
        try:
            return self._keys[key_id].decrypt(token).decode()
        except InvalidToken:
            raise SecretUnreadable("a stored secret is damaged; rotate it") from None

    def renewed(self, stored: str) -> str:
        """Return a stored value encrypted by the current key. Raises SecretUnreadable."""
        if self.current is not None and stored.startswith(f"{PREFIX}{self.current}§"):
            return stored
        return self.encrypt(self.decrypt(stored))


def missing(key_ids: Sequence[str]) -> str:
    """Return the message for keys that the setting lacks."""
    named = " and ".join(key_ids)
    return (
        f"{SETTING} lacks the key with the id {named}, which encrypts secrets in the database:"
        " add it behind the first one, for the service and its workers"
    )


def read_key(text: str) -> bytes:
    """Return a key from its base64, of either alphabet. Raises ValueError without its text."""
    try:
        key = base64.b64decode(text.strip().translate(str.maketrans("-_", "+/")), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"must be keys of {KEY_BYTES} bytes in base64, separated by commas")
    return key


def _id_of(key: bytes) -> str:
    """Return an id that says nothing about a random key."""
    return sha256(b"appointments secrets key" + key).hexdigest()[:8]
