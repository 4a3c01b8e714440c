"""Resolves the hosts of webhooks to addresses that they may reach.

Addresses are checked in the resolver that the request itself uses. A check before the request
could be bypassed by changing the DNS record in between (DNS rebinding).
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from service.webhooks.addresses import Address, AddressRules, refusal_message

# Resolves a host and port, with the result of `socket.getaddrinfo`. Raises OSError.
LookUp = Callable[[str, int, socket.AddressFamily], Awaitable[list[tuple[Any, ...]]]]


class AddressRefused(OSError):
    """The address may not be reached. The message says which address, and why."""


class GuardedResolver(AbstractResolver):
    """Resolves names for one connector, and returns only addresses that may be reached."""

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
            raise AddressRefused(refusal_message(host, addresses, secure=self._secure))
        return found

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


async def look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[Any, ...]]:
    """Resolve with the system's resolver, in a new thread per call.

    A name server that hangs therefore delays no other look-up. A cancelled caller leaves its
    thread running; the thread is a daemon and does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

    def set_result(found: list[tuple[Any, ...]] | OSError) -> None:
        if result.done():
            return
        if isinstance(found, OSError):
            result.set_exception(found)
        else:
            result.set_result(found)

    def resolve() -> None:
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
            loop.call_soon_threadsafe(set_result, found)

    threading.Thread(target=resolve, name=f"look up {host}", daemon=True).start()
    return await result
