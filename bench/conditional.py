"""`python -m bench.conditional`: what polls of unchanged lists and patches cost, by REST.

A list is requested as a caller that polls does: unchanged (304), the same again, and another one
each time, which no cache has. A patch is compared with an upsert of the whole appointment. All take
turns. Prints CPU time per request by program, which does not include waiting; a ratio is the median
of the rounds' own, of gateway and service together.
"""

import asyncio
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click
from aiohttp import ClientSession, TCPConnector

from bench.stack import Stack, database, stack
from bench.stored import preload
from bench.workload import DAY, FIRST_DAY, HOUR
from local.programs import ROOT

CONNECTIONS = 16
REQUESTS = 1_500  # per load and round
STORED = 1_000
SIZES = (20, 100)
PROGRAMS = ("gateway", "service", "postgresql")
MEASURED = ("gateway", "service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests, made from their numbers, that are answered with one status."""

    title: str
    method: str
    status: int
    query: Callable[[int], Mapping[str, str]]
    path: Callable[[int], str] = lambda _: ""
    body: Callable[[int], Mapping[str, Any]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _time(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def list_loads(organization: str, size: int, etag: str) -> list[Load]:
    """Return the loads on lists of one size. The first is the one that others compare with."""

    def window(start: int) -> dict[str, str]:
        return {
            "organizationId": organization,
            "from": _time(start),
            "to": _time(start + size * DAY),
        }

    def another(number: int) -> dict[str, str]:
        # Less than the time between two appointments, so that each has as many.
        shift = HOUR + number % (DAY - 2 * HOUR)
        return window(FIRST_DAY + number % (STORED - size - 1) * DAY + shift)

    same = window(FIRST_DAY)
    return [
        Load(title=f"another list of {size}", method="GET", status=200, query=another),
        Load(title=f"the same list of {size}", method="GET", status=200, query=lambda _: same),
        Load(
            title="unchanged",
            method="GET",
            status=304,
            query=lambda _: same,
            headers={"If-None-Match": etag},
        ),
    ]


def write_loads(organization: str) -> list[Load]:
    """Return the loads that change stored appointments."""
    query = {"organizationId": organization}
    salt = secrets.token_hex(4)

    def day(number: int) -> int:
        return number % STORED

    def whole(number: int) -> dict[str, object]:
        start = FIRST_DAY + day(number) * DAY
        return {
            "start": _time(start),
            "end": _time(start + HOUR),
            "title": f"{salt} {number}",
            "attributes": {"phone": "0123", "note": "some text"},
        }

    def load(title: str, method: str, body: Callable[[int], Mapping[str, Any]]) -> Load:
        return Load(
            title=title,
            method=method,
            status=200,
            path=lambda number: f"/stored-{day(number)}",
            query=lambda _: query,
            body=body,
        )

    return [
        load("PUT of an appointment", "PUT", whole),
        load("PATCH of its title", "PATCH", lambda number: {"title": f"{salt}, {number}"}),
        load(
            "PATCH of an attribute",
            "PATCH",
            lambda number: {"attributes": {"phone": f"{salt} {number}"}},
        ),
    ]


class Client:
    """Sends loads to a gateway. Numbers are never repeated."""

    def __init__(self, session: ClientSession, running: Stack) -> None:
        self._session = session
        self._running = running
        self._next = 0

    async def send(self, load: Load, number: int) -> Mapping[str, str]:
        """Send one request; return the headers of its response."""
        async with self._session.request(
            load.method,
            f"http://{self._running.gateway}/api/appointments{load.path(number)}",
            params=load.query(number),
            json=load.body(number) if load.body else None,
            headers={"Accept-Encoding": "identity", **load.headers},
        ) as response:
            body = await response.read()
            if response.status != load.status:
                raise RuntimeError(f"{load.title}: {response.status} {body[:500]!r}")
            return response.headers

    async def measure(self, load: Load, requests: int) -> dict[str, float]:
        """Return microseconds of CPU time per request by program."""
        numbers = iter(range(self._next, self._next + requests))
        self._next += requests

        async def one_after_another() -> None:
            for number in numbers:
                await self.send(load, number)

        before = self._running.cpu_seconds()
        await asyncio.gather(*(one_after_another() for _ in range(CONNECTIONS)))
        spent = self._running.cpu_seconds_since(before)
        return {name: spent[name] / requests * 1e6 for name in PROGRAMS}


async def compare(
    client: Client, loads: Sequence[Load], *, rounds: int, requests: int
) -> dict[str, list[dict[str, float]]]:
    """Measure all loads in turn; return the rounds of each."""
    found: dict[str, list[dict[str, float]]] = {load.title: [] for load in loads}
    for turn in range(-1, rounds):
        for load in loads:
            measured = await client.measure(load, requests)
            if turn >= 0:  # plans are made and connections opened in the first
                found[load.title].append(measured)
    return found


def lines(found: Mapping[str, list[dict[str, float]]]) -> Iterator[str]:
    """Return a line per load, with its ratio to the first one."""
    yardstick, *_ = found.values()
    for title, rounds in found.items():
        each = "  ".join(
            f"{name} {median(one[name] for one in rounds):6.0f} µs" for name in PROGRAMS
        )
        ratio = median(
            sum(one[name] for name in MEASURED) / sum(other[name] for name in MEASURED)
            for one, other in zip(rounds, yardstick, strict=True)
        )
        yield f"{title:26} {each}  ({ratio:.2f})"


async def _measure(running: Stack, *, rounds: int, requests: int) -> None:
    organization = "stored-0"
    async with ClientSession(connector=TCPConnector(limit=CONNECTIONS)) as session:
        client = Client(session, running)
        for size in SIZES:
            _, same, _ = list_loads(organization, size, "")
            etag = (await client.send(same, 0))["ETag"]
            loads = list_loads(organization, size, etag)
            for line in lines(await compare(client, loads, rounds=rounds, requests=requests)):
                click.echo(line)
        loads = write_loads(organization)
        for line in lines(await compare(client, loads, rounds=rounds, requests=requests)):
            click.echo(line)


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=REQUESTS, show_default=True)
def main(*, rounds: int, requests: int) -> None:
    """Measure conditional lists, and patches."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="conditional-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        with database(directory) as (url, postgres), stack(url, postgres, {}, directory) as running:
            preload(url, "stored", organizations=1, stored=STORED)
            asyncio.run(_measure(running, rounds=rounds, requests=requests))


if __name__ == "__main__":
    main()
