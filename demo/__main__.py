"""`make demo` and `make demo-fosdem`: send real requests and check the results.

They use what `make run` started. If nothing runs, they start everything themselves, on free ports
and with a temporary database.
"""

import asyncio
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import click
from rich.console import Console

from demo import collisions, fosdem
from demo.rest import Rest
from local.postgres import EmbeddedPostgres
from local.programs import StartError
from local.stack import ANY_PORT, running
from service.verify.command import SOUND, parse, verify

# The gateway and the service of `make run`.
DEFAULT_URL = f"http://localhost:{os.environ.get('GATEWAY_PORT', '3000')}"
DEFAULT_ADDRESS = f"localhost:{os.environ.get('GRPC_PORT', '50051')}"

url_option = click.option("--url", help=f"The gateway. [default: {DEFAULT_URL}, else a new one]")
console = Console(highlight=False, soft_wrap=True)


@click.group(invoke_without_command=True)
@click.option("--requests", default=100, show_default=True, type=click.IntRange(1))
@click.option("--organization", help="[default: a new one each time]")
@click.option("--seed", type=int, help="Repeats the requests of an earlier run.")
@url_option
@click.pass_context
def demo(
    context: click.Context,
    requests: int,
    organization: str | None,
    seed: int | None,
    url: str | None,
) -> None:
    """Send colliding requests, drawn at random from seven, and check the result."""
    if context.invoked_subcommand is not None:
        return
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    organization = organization or f"demo-{secrets.token_hex(4)}"

    async def send(at: str) -> bool:
        async with Rest.connected(at) as rest:
            result = await collisions.send(rest, organization, requests, seed)
        return collisions.show(console, result)

    with gateway(url) as place:
        console.print(f"{place.url}, organization {organization}, --seed {seed}")
        sys.exit(0 if asyncio.run(send(place.url)) else 1)


@demo.command("fosdem")
@click.option("--organization", default=fosdem.ORGANIZATION, show_default=True)
@click.option("--address", help=f"The service. [default: {DEFAULT_ADDRESS}, else a new one]")
def demo_fosdem(organization: str, address: str | None) -> None:
    """Import the programme of FOSDEM 2023 and find the one double booking in it.

    A database of its own is also checked.
    """
    with nullcontext(Place(address=address)) if address else gateway(None) as place:
        console.print(f"{place.address}, organization {organization}")
        succeeded = fosdem.load(place.address, organization, console)
        if place.database_url is not None:
            console.print("\npython -m service verify:")
            succeeded &= verify(place.database_url, parse([])) == SOUND
        elif place.url:
            shown = urlencode({"organization": organization, "date": "2023-02-04"})
            console.print(f"\nThe calendar: {place.url}/#{shown}", markup=False)
        sys.exit(0 if succeeded else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A gateway and its service, and their database if the demo has started them."""

    url: str = ""
    address: str = DEFAULT_ADDRESS
    database_url: str | None = None


@contextmanager
def gateway(url: str | None) -> Iterator[Place]:
    """Yield a ready gateway: that of `url`, that of `make run`, or a new one.

    Raises StartError if `url` is given and not ready.
    """

    async def ready() -> bool:
        async with Rest.connected(url or DEFAULT_URL) as rest:
            return await rest.ready()

    if asyncio.run(ready()):
        yield Place(url=url or DEFAULT_URL)
        return
    if url is not None:
        raise StartError(f"no gateway is ready at {url}")
    console.print(f"No gateway at {DEFAULT_URL}: starting everything, with a temporary database.")
    with (
        tempfile.TemporaryDirectory(prefix="appointments-") as directory,
        running(
            postgres=EmbeddedPostgres(Path(directory) / "postgres"), settings=ANY_PORT
        ) as stack,
    ):
        yield Place(
            url=stack.gateway.url, address=stack.service.address, database_url=stack.database_url
        )


if __name__ == "__main__":
    try:
        demo()
    except StartError as error:
        sys.exit(f"demo: {error}")
