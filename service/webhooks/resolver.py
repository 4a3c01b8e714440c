"""Resolves the names of webhooks to addresses that they may reach.

An address is judged where the request itself resolves the name, so that the name cannot
stand for another one in between.
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from service.webhooks.addresses import Address, AddressRules, refused

# Resolves a host and port to what `socket.getaddrinfo` gives. Raises OSError.
LookUp = Callable[[str, int, socket.AddressFamily], Awaitable[list[tuple[Any, ...]]]]


class AddressRefused(OSError):
    """Nothing is sent to this address; the message says which and why."""


class GuardedResolver(AbstractResolver):
    """Resolves names for one connector, to addresses that may be reached and no others."""

    def __init__(self, rules: AddressRules, *, secure: bool, look_up: LookUp) -> None:
        self._rules = rules
        self._secure = secure
        self._look_up = look_up

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the permitted addresses. Raises AddressRefused if there is none."""
        found: list[ResolveResult] = []
        addresses: list[Address] = []
        for its_family, _, protocol, _, where in await self._look_up(host, port, family):
            address = ipaddress.ip_address(str(where[0]).partition("%")[0])
            addresses.append(address)
            if self._rules.permits(address, secure=self._secure):
                found.append(
                    ResolveResult(
                        hostname=host,
                        host=str(address),
                        port=port,
                        family=its_family,
                        proto=protocol,
                        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                    )
                )
        if not found:
            raise AddressRefused(refused(host, addresses, secure=self._secure))
        return found

    async def close(self) -> None:
        """There is nothing to close."""


async def look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[Any, ...]]:
    """Ask the system, in a thread of its own: a name server that hangs holds up no others.

    The thread outlives a caller that is cancelled, but not the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

    def hand_over(found: list[tuple[Any, ...]] | OSError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: list[Any] | OSError
        try:
            found = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
            )
        except OSError as error:
            found = error
        except ValueError as error:  # a label that is too long
            found = OSError(str(error))
        if not loop.is_closed():
            loop.call_soon_threadsafe(hand_over, found)

    threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    return await answer
