"""`python -m bench.credentials`: what access control costs, by REST with 64 connections.

A service without access control takes turns with one that has it, and that gets a token or an API
key with each request. Prints rates, and the CPU time of gateway and service per request, which does
not include waiting. A ratio is the median of the rounds' own. The second load without access
control shows what of it is noise.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import click
import jwt
import psycopg
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from bench.generators import wrk
from bench.measured import GOOD
from bench.stack import Stack, database, stack
from bench.stored import preload
from bench.workload import Operation, Workload
from local.programs import ROOT
from service.access.key_table import KeyTable

OPERATIONS: tuple[Operation, ...] = ("upsert", "get")
CONNECTIONS = 64
STORED = 1_000
NUMBERS = 20_000  # for each second of a run, more than it can use
MEASURED = ("gateway", "service")
ORGANIZATION = "stored-0"  # that of the workload
SCOPES = ("appointments.read", "appointments.write")
SUBJECT = "bench"
ISSUER, AUDIENCE, KEY_ID = "https://issuer.example", "appointments", "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, and whom."""

    title: str
    running: Stack
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run: requests per second, and CPU time per request in microseconds."""

    rate: float
    gateway: float
    service: float

    @property
    def both(self) -> float:
        return self.gateway + self.service


def access_control(directory: Path) -> tuple[dict[str, str], str]:
    """Return the settings of a service that trusts a new issuer, and a token of it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    published = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    file = directory / "keys.json"
    file.write_text(json.dumps({"keys": [{**published, "kid": KEY_ID}]}))
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": SUBJECT,
        "exp": int(time.time()) + 3600,
        "organizations": [ORGANIZATION],
        "scope": " ".join(SCOPES),
    }
    settings = {
        "ACCESS_CONTROL": "on",
        "JWT_KEYS_FILE": str(file),
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": AUDIENCE,
    }
    return settings, jwt.encode(claims, key, algorithm="RS256", headers={"kid": KEY_ID})


def api_key(url: str) -> str:
    """Store a new API key as `python -m service keys` does, and return it."""
    with psycopg.connect(url, autocommit=True) as connection:
        key = KeyTable(connection).create(
            subject=SUBJECT, organizations=[ORGANIZATION], scopes=SCOPES, expires_in=None
        )
    return key.text


def run(caller: Caller, operation: Operation, *, first: int, seconds: int) -> Cost:
    """Make requests, which must all be answered well."""
    work = Workload(operation=operation, organization="stored", stored=STORED, first=first)
    before = caller.running.cpu_seconds()
    measured = wrk(
        caller.running.gateway,
        work,
        connections=CONNECTIONS,
        seconds=seconds,
        headers=caller.headers,
    )
    spent = caller.running.cpu_seconds_since(before)
    if not measured.answers.keys() <= GOOD:
        raise RuntimeError(f"{caller.title}: {measured.answers}")
    requests = sum(measured.answers.values())
    gateway, service = (spent[name] / requests * 1e6 for name in MEASURED)
    return Cost(rate=measured.per_second(GOOD), gateway=gateway, service=service)


def lines(found: Mapping[str, list[Cost]]) -> Iterator[str]:
    """Return a line per caller, with its ratios to the first one."""
    yardstick, *_ = found.values()
    for title, costs in found.items():
        pairs = list(zip(costs, yardstick, strict=True))
        ratios = [one.both / other.both for one, other in pairs]
        lower, middle, upper = quantiles(ratios) if len(ratios) > 1 else ratios * 3
        yield (
            f"{title:26} {median(cost.rate for cost in costs):6,.0f}/s"
            f"  gateway {median(cost.gateway for cost in costs):4.0f} µs"
            f"  service {median(cost.service for cost in costs):4.0f} µs"
            f"  CPU {middle:.3f} ({lower:.3f} to {upper:.3f})"
            f"  rate {median(one.rate / other.rate for one, other in pairs):.3f}"
            f"  least CPU {_least(costs):4.0f} µs ({_least(costs) / _least(yardstick):.3f})"
        )


def _least(costs: Sequence[Cost]) -> float:
    """Return the lower quartile: what other programs did to the caches is in the others."""
    return quantiles([cost.both for cost in costs])[0] if len(costs) > 1 else costs[0].both


def compare(callers: Sequence[Caller], *, rounds: int, seconds: int) -> None:
    """Measure the callers in turn, with each operation, and print what they cost."""
    first = 0
    for operation in OPERATIONS:
        found: dict[str, list[Cost]] = {caller.title: [] for caller in callers}
        for turn in range(-1, rounds):
            # Each comes first as often as the others.
            start = turn % len(callers)
            for caller in (*callers[start:], *callers[:start]):
                cost = run(caller, operation, first=first, seconds=seconds)
                first += NUMBERS * seconds
                if turn >= 0:  # connections are opened and plans made in the first
                    found[caller.title].append(cost)
        click.echo(f"{operation}, {rounds} rounds of {seconds} s")
        for line in lines(found):
            click.echo(f"  {line}")


def subdirectory(directory: Path, name: str) -> Path:
    """Make a directory for the logs of a stack."""
    path = directory / name
    path.mkdir()
    return path


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True)
def main(*, rounds: int, seconds: int) -> None:
    """Measure upserts and gets without access control, with a token and with an API key."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with ExitStack() as parts:
        directory = Path(
            parts.enter_context(tempfile.TemporaryDirectory(prefix="credentials-", dir=data))
        )
        directory.chmod(0o711)  # PostgreSQL may run as another user
        url, postgres = parts.enter_context(database(directory))
        preload(url, "stored", organizations=1, stored=STORED)
        settings, token = access_control(directory)
        off, on = (
            parts.enter_context(stack(url, postgres, each, subdirectory(directory, name)))
            for name, each in (("off", {}), ("on", settings))
        )
        callers = [
            Caller(title="without access control", running=off, headers={}),
            Caller(title="the same again", running=off, headers={}),
            Caller(title="the same with X-Actor", running=off, headers={"X-Actor": SUBJECT}),
            Caller(title="token", running=on, headers={"Authorization": f"Bearer {token}"}),
            Caller(
                title="API key", running=on, headers={"Authorization": f"Bearer {api_key(url)}"}
            ),
        ]
        compare(callers, rounds=rounds, seconds=seconds)


if __name__ == "__main__":
    main()
