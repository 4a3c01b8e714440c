"""The public keys that the signatures of tokens are checked with: a JWK set (RFC 7517)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import orjson
import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from runtime.turns import result_of
from service.errors import AccessUnavailable
from service.metrics import Metrics

# Reads a JWK set. Raises SigningKeysUnavailable.
ReadSet = Callable[[], Awaitable[bytes]]

# Bytes of a set, and seconds for fetching it.
MAX_BYTES = 256 * 1024
FETCH_TIMEOUT = 5.0
# Seconds between two reads, of which unknown keys cause some.
MIN_INTERVAL = 5.0
# The shortest RSA key (RFC 7518, 3.3), in bits.
MIN_RSA_BITS = 2048

# The algorithms of a key, by its type and curve. HMAC is not among them: who can check its
# signatures can also make them, and a public key must never be used as its secret.
_ALGORITHMS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = tuple(name for names in _ALGORITHMS.values() for name in names)
"""The algorithms that can be allowed."""

# The members of a JWK that are secret (RFC 7518, 6.2.2 and 6.3.2). They are not needed.
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})

log = structlog.get_logger()


class SigningKeysUnavailable(Exception):
    """The JWK set cannot be read; the message says why."""


class SigningKeys:
    """A JWK set that is read again every `interval` seconds. `follow` has to run all the time.

    If it cannot be read, the last one is used for up to `max_age` seconds.
    """

    def __init__(
        self,
        read: ReadSet,
        metrics: Metrics,
        *,
        algorithms: Sequence[str],
        interval: float,
        max_age: float,
        min_interval: float = MIN_INTERVAL,
    ) -> None:
        self._read = read
        self._algorithms = algorithms
        self._interval = interval
        self._max_age = max_age
        self._min_interval = min_interval
        # By the key's id, None for those without one, and its algorithm.
        self._keys: dict[tuple[str | None, str], PyJWK] = {}
        self.generation = 0
        """Counts the changes of the set. A token that was valid before one may not be now."""
        self._began = self._confirmed = -inf
        self._failed = False
        self._reading: asyncio.Task[None] | None = None
        metrics.signing_keys_age_seconds.set_function(lambda: monotonic() - self._confirmed)

    async def follow(self) -> NoReturn:
        """Read the set again at intervals, until cancelled. Sooner while it cannot be read."""
        while True:
            due = self._began + (self._min_interval if self._failed else self._interval)
            await asyncio.sleep(due - monotonic())
            await self.refresh()

    async def find(self, id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key for an algorithm, None if there is none.

        A token without the id of its key is checked with the only key of its algorithm. Reads
        the set again for an unknown key, unless that was done less than the minimal interval
        ago. Raises AccessUnavailable if the set is too old, or the key may be in a newer one.
        """
        if algorithm not in self._algorithms:
            return None
        key = self._find(id, algorithm)
        if key is None and (
            self._reading is not None or monotonic() - self._began >= self._min_interval
        ):
            await self.refresh()
            key = self._find(id, algorithm)
        if key is None and self._failed:
            raise _unavailable()
        self.check_age()
        return key

    def check_age(self) -> None:
        """Raise AccessUnavailable if the set is too old."""
        if monotonic() - self._confirmed > self._max_age:
            raise _unavailable()

    async def load(self) -> None:
        """Read the set. Raises SigningKeysUnavailable."""
        self._began = began = monotonic()
        try:
            keys = _usable(await self._read(), self._algorithms)
        except SigningKeysUnavailable:
            self._failed = True
            raise
        self._failed = False
        self._confirmed = began
        if {place: key.key for place, key in keys.items()} != {
            place: key.key for place, key in self._keys.items()
        }:
            self._keys = keys
            self.generation += 1
            log.info("signing keys", ids=sorted({str(key_id) for key_id, _ in keys}))

    async def refresh(self) -> None:
        """Read the set, once for all who wait. A failure is logged."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._load_or_log())
            self._reading.add_done_callback(self._forget)
        await result_of(self._reading)

    def _find(self, id: str | None, algorithm: str) -> PyJWK | None:
        if id is not None:
            return self._keys.get((id, algorithm))
        fitting = [key for (_, name), key in self._keys.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _load_or_log(self) -> None:
        try:
            await self.load()
        except SigningKeysUnavailable as error:
            log.warning("the signing keys cannot be read", error=str(error))

    def _forget(self, _: asyncio.Task[None]) -> None:
        self._reading = None


def read_file(path: Path) -> ReadSet:
    """Return what reads a set from a file."""

    async def read() -> bytes:
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise SigningKeysUnavailable(f"{path}: {error.strerror}") from error

    return read


def fetch(url: str) -> ReadSet:
    """Return what fetches a set. It follows no redirects and uses no proxies."""

    async def read() -> bytes:
        try:
            async with (
                ClientSession(
                    cookie_jar=DummyCookieJar(),
                    trust_env=False,
                    timeout=ClientTimeout(total=FETCH_TIMEOUT),
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise SigningKeysUnavailable(f"{url}: status {response.status}")
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise SigningKeysUnavailable(f"{url}: more than {MAX_BYTES:,} bytes")
                return bytes(content)
        except TimeoutError as error:
            raise SigningKeysUnavailable(f"{url}: no answer in {FETCH_TIMEOUT:g} s") from error
        except (ClientError, OSError, ValueError) as error:
            raise SigningKeysUnavailable(f"{url}: {error}") from error

    return read


def _usable(content: bytes, algorithms: Sequence[str]) -> dict[tuple[str | None, str], PyJWK]:
    """Return the keys of a set that check signatures. Raises SigningKeysUnavailable."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise SigningKeysUnavailable("the JWK set is not JSON") from error
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list):
        raise SigningKeysUnavailable("the JWK set has no list of keys")
    keys = {}
    for data in listed:
        if isinstance(data, dict):
            for algorithm in _algorithms_of(data, algorithms):
                key = _key(data, algorithm)
                if key is not None:
                    keys[data.get("kid"), algorithm] = key
    if not keys:
        raise SigningKeysUnavailable(
            f"the JWK set has no key to check a signature of {', '.join(algorithms)} with"
        )
    return keys


def _unavailable() -> AccessUnavailable:
    return AccessUnavailable(
        "the token cannot be checked, as the signing keys cannot be read; nothing was written,"
        " try again later"
    )


def _algorithms_of(data: dict[str, Any], allowed: Sequence[str]) -> list[str]:
    """Return the algorithms that a key may be used with, by its type and by what it says."""
    kind = data.get("kty")
    curve = None if kind == "RSA" else data.get("crv")
    if data.get("use", "sig") != "sig" or not isinstance(data.get("kid", ""), str):
        return []
    operations = data.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return []
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return []
    possible = _ALGORITHMS.get((kind, curve), ())
    return [name for name in possible if name in allowed and data.get("alg", name) == name]


def _key(data: dict[str, Any], algorithm: str) -> PyJWK | None:
    public = {name: value for name, value in data.items() if name not in _PRIVATE}
    try:
        key = PyJWK(public, algorithm)
    except (PyJWTError, ValueError, TypeError):
        return None
    bits = getattr(key.key, "key_size", MIN_RSA_BITS) if data["kty"] == "RSA" else MIN_RSA_BITS
    return key if bits >= MIN_RSA_BITS else None
