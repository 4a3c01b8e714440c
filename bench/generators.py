"""The load generators: pgbench for the limits, `bench.driver`, and wrk for most of REST."""

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from bench.limits import SCRIPTS
from bench.measured import Latency, Measured
from bench.workload import Workload
from local.postgres import programs_directory
from local.programs import ROOT


def pgbench(url: str, work: Workload, *, clients: int, seconds: int) -> Measured:
    """Run pgbench with `clients` that make one transaction after another."""
    variables = {
        "prefix": work.organization,
        "organizations": work.organizations,
        "stored": work.stored,
        "resources": work.resources,
        "first": work.first,
        "clients": clients,
        "turn": -1,
    }
    with tempfile.TemporaryDirectory(prefix="pgbench-") as name:
        script = Path(name, "script.sql")
        script.write_text(SCRIPTS[work.operation])
        output, cpu_seconds = _run(
            str(programs_directory() / "pgbench"),
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={clients}",
            f"--time={seconds}",
            "--log",
            f"--log-prefix={name}/transactions",
            *(f"--define={variable}={value}" for variable, value in variables.items()),
            f"--file={script}",
            url,
        )
        [log] = Path(name).glob("transactions.*")
        # The third field of each line is the latency of a transaction in microseconds.
        took = [int(line.split()[2]) / 1e6 for line in log.read_text().splitlines()]
    rate = re.search(r"tps = ([0-9.]+)", output)
    if rate is None:
        raise ValueError(f"no rate in the output of pgbench: {output}")
    return Measured(
        answers={"OK": len(took)},
        seconds=len(took) / float(rate[1]),
        cpu_seconds=cpu_seconds,
        latency=Latency.of(took),
    )


def driver(
    address: str,
    work: Workload,
    *,
    protocol: str,
    callers: int,
    seconds: float,
    pause: float = 0.0,
    rate: float | None = None,
) -> Measured:
    """Run `bench.driver`."""
    arguments = {
        "protocol": protocol,
        "address": address,
        "workload": asdict(work),
        "callers": callers,
        "seconds": seconds,
        "pause": pause,
        "rate": rate,
    }
    output, _ = _run(sys.executable, "-m", "bench.driver", json.dumps(arguments))
    fields = json.loads(output)
    fields["latency"] = Latency(**fields["latency"])
    fields["refusals"] = fields["refusals"] and Latency(**fields["refusals"])
    fields["response"] = b64decode(fields["response"])
    return Measured(**fields)


def wrk_is_installed() -> bool:
    return shutil.which("wrk") is not None


def wrk(
    address: str,
    work: Workload,
    *,
    connections: int,
    seconds: int,
    headers: Mapping[str, str] | None = None,
) -> Measured:
    """Run wrk with `connections` that make one request after another, with these headers."""
    output, cpu_seconds = _run(
        "wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={seconds}s",
        "--timeout=15s",
        f"--script={Path(__file__).with_name('rest.lua')}",
        *(f"--header={name}: {value}" for name, value in (headers or {}).items()),
        f"http://{address}",
        "--",
        *(str(value) for value in asdict(work).values()),
    )
    *_, response, figures = output.removesuffix("\n").split("\n")
    fields = json.loads(figures)
    fields["latency"] = Latency(**fields["latency"])
    return Measured(**fields, cpu_seconds=cpu_seconds, response=response.encode())


def _run(*command: str) -> tuple[str, float]:
    """Run a program; return its standard output and its CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr or done.stdout}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu_seconds
