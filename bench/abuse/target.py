"""What an attack is directed at, and how attacks are found by their names."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Addresses, as host and port. `seconds` is how long the attack lasts."""

    gateway: str
    service: str
    seconds: float

    def host(self, address: str) -> tuple[str, int]:
        host, _, port = address.rpartition(":")
        return host, int(port)


Attack = Callable[[Target], Coroutine[Any, Any, dict[str, Any]]]
"""Attacks for `seconds`; returns what came of it, for the report."""
