"""`python -m bench.tracing`: what traces cost, by REST with 64 connections.

Programs without traces take turns with programs that sample 1 % of the requests, and all of them.
Their spans go to a collector that throws them away. bench/credentials.py describes what is printed.
The last line is the CPU time that a gateway takes to decide that a request is not sampled, which
other programs disturb less.
"""

import os
import threading
import timeit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bench.credentials import STORED, Caller, compare, subdirectory
from bench.stack import database, stack
from bench.stored import preload
from local.programs import ROOT

DECISIONS = 5_000


class _Taker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def collector() -> Iterator[str]:
    """Take spans while the block runs. Yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Taker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def sampling(url: str, share: float) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(share),
    }


def decision(url: str) -> float:
    """Return how long it takes not to sample a request, in microseconds."""
    os.environ.update(sampling(url, 0))
    from runtime.spans import Tracer  # noqa: PLC0415  reads the environment

    tracer = Tracer("bench")
    runs = timeit.repeat(lambda: tracer.begin("GET", None), number=DECISIONS, repeat=20)
    return min(runs) / DECISIONS * 1e6


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=15, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True)
def main(*, rounds: int, seconds: int) -> None:
    """Measure upserts and gets without traces, with 1 % and with all requests sampled."""
    data = ROOT / ".data"
    data.mkdir(exist_ok=True)
    with ExitStack() as parts:
        directory = Path(parts.enter_context(TemporaryDirectory(prefix="tracing-", dir=data)))
        directory.chmod(0o711)  # PostgreSQL may run as another user
        url, postgres = parts.enter_context(database(directory))
        preload(url, "stored", organizations=1, stored=STORED)
        taker = parts.enter_context(collector())
        callers = []
        for number, (title, settings) in enumerate(
            {
                "no traces": {},
                "the same again": {},
                "1 % sampled": sampling(taker, 0.01),
                "all sampled": sampling(taker, 1),
            }.items()
        ):
            logs = subdirectory(directory, str(number))
            running = parts.enter_context(stack(url, postgres, settings, logs))
            callers.append(Caller(title=title, running=running, headers={}))
        compare(callers, rounds=rounds, seconds=seconds)
        click.echo(f"not sampled: {decision(taker):.1f} µs")


if __name__ == "__main__":
    main()
