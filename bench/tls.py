"""`python -m bench.tls`: what TLS costs, by gRPC and by REST.

Two stacks take turns on one database. One has no TLS, the other has it on every connection: gRPC
clients, HTTP clients, and the gateway's to the service. Connections are kept, or opened for each
request. Prints CPU time per upsert by program, which does not include waiting; a ratio is the
median of the rounds' own, of gateway and service together.
"""

import asyncio
import ipaddress
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import click
import grpc
from aiohttp import ClientSession, TCPConnector
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from grpc import aio

from bench.stack import Stack, database, stack
from bench.workload import FIRST_DAY, HOUR
from local.programs import ROOT

IN_FLIGHT = 16
REQUESTS = 1_500  # per load and round
NEW_CONNECTIONS = 400
PROGRAMS = ("gateway", "service")

# Makes one upsert from its number.
Upsert = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """A stack, and what its clients trust, None without TLS."""

    running: Stack
    certificate: bytes | None

    @asynccontextmanager
    async def grpc(self) -> AsyncIterator[Upsert]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = (
            aio.insecure_channel(self.running.service, options)
            if self.certificate is None
            else aio.secure_channel(
                self.running.service, grpc.ssl_channel_credentials(self.certificate), options
            )
        )
        async with channel:
            stub = AppointmentServiceStub(channel)
            yield lambda number: stub.UpsertAppointment(_request(number), timeout=30)

    @asynccontextmanager
    async def rest(self) -> AsyncIterator[Upsert]:
        scheme, trusted = "http", None
        if self.certificate is not None:
            trusted = ssl.create_default_context(cadata=self.certificate.decode())
            scheme = "https"
        connector = TCPConnector(limit=IN_FLIGHT, ssl=trusted or True)
        async with ClientSession(connector=connector) as session:

            async def upsert(number: int) -> None:
                url = f"{scheme}://{self.running.gateway}/api/appointments"
                async with session.post(url, json=_body(number)) as response:
                    content = await response.read()
                    if response.status >= 400:
                        raise RuntimeError(f"{response.status} {content[:500]!r}")

            yield upsert

    async def measure(self, load: "Load", first: int, requests: int) -> dict[str, float]:
        """Return microseconds of CPU time per upsert by program."""
        numbers = iter(range(first, first + requests))
        opened = getattr(self, load.interface)

        async def one_after_another() -> None:
            if load.kept:
                async with opened() as upsert:
                    for number in numbers:
                        await upsert(number)
                return
            for number in numbers:
                async with opened() as upsert:
                    await upsert(number)

        before = self.running.cpu_seconds()
        await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        spent = self.running.cpu_seconds_since(before)
        return {name: spent[name] / requests * 1e6 for name in PROGRAMS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Upserts, over IN_FLIGHT connections that are kept, or over a new one each."""

    title: str
    interface: str
    kept: bool


LOADS = (
    Load(title="gRPC", interface="grpc", kept=True),
    Load(title="REST", interface="rest", kept=True),
    Load(title="gRPC, new connections", interface="grpc", kept=False),
    Load(title="REST, new connections", interface="rest", kept=False),
)


def _times(number: int) -> tuple[int, int]:
    start = FIRST_DAY + number * HOUR
    return start, start + HOUR


def _request(number: int) -> rpc.UpsertAppointmentRequest:
    request = rpc.UpsertAppointmentRequest()
    wanted = request.appointment
    wanted.organization_id, wanted.id, wanted.title = "tls", str(number), "A title"
    wanted.start.seconds, wanted.end.seconds = _times(number)
    return request


def _body(number: int) -> dict[str, str]:
    start, end = (datetime.fromtimestamp(time, UTC).isoformat() for time in _times(number))
    return {
        "organizationId": "tls",
        "id": str(number),
        "title": "A title",
        "start": start,
        "end": end,
    }


async def compare(
    plain: Ends, secured: Ends, *, rounds: int, requests: int, new_connections: int
) -> Iterator[str]:
    """Measure all loads in turn. Returns a line per load and stack."""
    found: dict[tuple[str, bool], list[dict[str, float]]] = {}
    first = 0
    for turn in range(-1, rounds):
        for load in LOADS:
            count = requests if load.kept else new_connections
            for ends in (plain, secured):
                measured = await ends.measure(load, first, count)
                first += count
                if turn >= 0:  # plans are made in the first
                    found.setdefault((load.title, ends is secured), []).append(measured)
    return _lines(found)


def _lines(found: dict[tuple[str, bool], list[dict[str, float]]]) -> Iterator[str]:
    for (title, is_secured), rounds in found.items():
        each = "  ".join(
            f"{name} {median(one[name] for one in rounds):6.0f} µs" for name in PROGRAMS
        )
        ratio = median(
            sum(one.values()) / sum(other.values())
            for one, other in zip(rounds, found[title, False], strict=True)
        )
        yield f"{title:22} {'TLS' if is_secured else 'plain':6} {each}  ({ratio:.2f})"


def write_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for loopback that signs itself, and its key. Returns both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "tls.crt", directory / "tls.key"
    files[0].write_bytes(signed.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=REQUESTS, show_default=True)
@click.option(
    "--new-connections", type=click.IntRange(1), default=NEW_CONNECTIONS, show_default=True
)
def main(*, rounds: int, requests: int, new_connections: int) -> None:
    """Measure upserts with and without TLS."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tls-", dir=data) as name:
        directory = Path(name)
        directory.chmod(0o711)  # PostgreSQL may run as another user
        logs = [directory / each for each in ("plain", "secured")]
        for each in logs:
            each.mkdir()
        certificate, key = write_certificate(directory)
        settings = {
            **{f"{program}_TLS_CERTIFICATE": str(certificate) for program in ("GRPC", "GATEWAY")},
            **{f"{program}_TLS_KEY": str(key) for program in ("GRPC", "GATEWAY")},
            "SERVICE_TLS_CA": str(certificate),
        }
        with (
            database(directory) as (url, postgres),
            stack(url, postgres, {}, logs[0]) as plain,
            stack(url, postgres, settings, logs[1]) as secured,
        ):
            for line in asyncio.run(
                compare(
                    Ends(running=plain, certificate=None),
                    Ends(running=secured, certificate=certificate.read_bytes()),
                    rounds=rounds,
                    requests=requests,
                    new_connections=new_connections,
                )
            ):
                click.echo(line)


if __name__ == "__main__":
    main()
