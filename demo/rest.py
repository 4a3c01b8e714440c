"""A REST client with the methods that the demos need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import aiohttp

IN_FLIGHT = 10

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The response to one write."""

    status: int
    outcome: str
    revision: int | None
    body: dict[str, Any]


class Rest:
    """A client of one gateway."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Self]:
        """Yield a client with IN_FLIGHT connections."""
        async with aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(limit=IN_FLIGHT),
            timeout=aiohttp.ClientTimeout(total=60),
        ) as session:
            yield cls(session)

    async def ready(self) -> bool:
        """Return whether this is a gateway of this project, and ready."""
        timeout = aiohttp.ClientTimeout(total=5)
        try:
            async with self._session.get("/readyz", timeout=timeout) as response:
                return response.status == 200 and "X-Request-Id" in response.headers
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def upsert(self, body: dict[str, Any]) -> Answer:
        """`POST /api/appointments`."""
        async with self._session.post("/api/appointments", json=body) as response:
            revision = response.headers.get("Organization-Revision")
            return Answer(
                status=response.status,
                outcome=response.headers.get("Appointment-Outcome", ""),
                revision=None if revision is None else int(revision),
                body=await response.json(content_type=None),
            )

    async def changes(self, organization: str) -> list[dict[str, Any]]:
        """Return the whole history."""
        return await self._pages("/api/changes", "entries", organization)

    async def appointments(self, organization: str) -> list[dict[str, Any]]:
        """Return all active appointments."""
        return await self._pages("/api/appointments", "appointments", organization)

    async def _pages(self, path: str, key: str, organization: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query = {"organizationId": organization, "pageSize": "100"}
        while True:
            async with self._session.get(path, params=query) as response:
                response.raise_for_status()
                page = await response.json()
            found += page[key]
            if not page["nextPageToken"]:
                return found
            query["pageToken"] = page["nextPageToken"]


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[None]]) -> None:
    """Run `work` for each item, started in order, IN_FLIGHT at a time."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
