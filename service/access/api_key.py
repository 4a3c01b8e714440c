"""The text of an API key: `apk_`, its id, `_`, a secret and a checksum.

The prefix lets scanners find keys that were published by mistake. The checksum tells a typing
error from a key that is not known, without a look at the database.
"""

import re
import secrets
from base64 import b32encode
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

PREFIX = "apk_"

# Characters of base32: 80 random bits, 256 random bits, 32 bits.
_ID, _SECRET, _CHECKSUM = 16, 52, 7
_FORM = re.compile(rf"{PREFIX}([a-z2-7]{{{_ID}}})_[a-z2-7]{{{_SECRET}}}([a-z2-7]{{{_CHECKSUM}}})")


class ApiKey(NamedTuple):
    """An API key. Only its id and its digest are stored."""

    id: str
    text: str

    def __repr__(self) -> str:
        """Return the id only."""
        return f"ApiKey({self.id!r})"

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the text.

        A slow hash protects passwords, which can be guessed. A secret of 256 random bits cannot,
        and a slow hash would cost each caller time, and an attacker could make the service spend
        it.
        """
        return sha256(self.text.encode()).digest()


def new_id() -> str:
    return _base32(secrets.token_bytes(10))


def new_key(id: str) -> ApiKey:
    """Return a key with a new secret."""
    head = f"{PREFIX}{id}_{_base32(secrets.token_bytes(32))}"
    return ApiKey(id, head + _checksum(head))


def unchecked_key(text: str) -> ApiKey:
    """Return the key with this text if it is one. Its form is not checked."""
    return ApiKey(text[len(PREFIX) : len(PREFIX) + _ID], text)


def read_key(text: str) -> ApiKey | None:
    """Return the key with this text, None if it cannot be one."""
    match = _FORM.fullmatch(text)
    if match is None or _checksum(text[:-_CHECKSUM]) != match[2]:
        return None
    return ApiKey(match[1], text)


def _checksum(head: str) -> str:
    return _base32(crc32(head.encode()).to_bytes(4, "big"))


def _base32(data: bytes) -> str:
    return b32encode(data).decode().rstrip("=").lower()
