"""The benchmark's clients count correctly; the benchmark runs and can be plotted."""

import asyncio
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import pytest
from appointments.v1.appointment_service_pb2 import ListAppointmentsResponse

from bench.dispatch import measure
from bench.driver import drive
from bench.eventual import missing
from bench.forms import writers
from bench.generators import driver, pgbench, wrk, wrk_is_installed
from bench.measure import NUMBERS, Empty, Run
from bench.measured import Latency, Measured
from bench.plan import Group, Load
from bench.report import rows
from bench.stack import EmptyServers
from bench.stored import overlapping, preload
from bench.workload import (
    BATCH,
    HOLDS_AHEAD,
    SLOTS,
    WEEKS,
    WINDOW,
    YEAR,
    Operation,
    Workload,
)
from local.pgbouncer import pgbouncer_program
from local.programs import ROOT, Program
from local.rabbitmq import server_script
from local.stack import ANY_PORT, base_environment
from tests.conftest import CreateDatabase, StartProgram
from tests.observing import PATIENT, held_lock, until

pytestmark = pytest.mark.slow


async def load(
    program: Program, work: Workload, *, callers: int = 64, seconds: float = 0.3
) -> Measured:
    return await drive(
        protocol="http" if program.name == "gateway" else "grpc",
        address=program.address,
        workload=asdict(work),
        callers=callers,
        seconds=seconds,
        pause=0.0,
    )


def stored(database_url: str, organization: str) -> int:
    with psycopg.connect(database_url) as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM appointments WHERE starts_with(organization_id, %s)",
            [organization],
        ).fetchall()
    return int(count)


@pytest.mark.parametrize("program", ["service", "gateway"])
async def test_every_good_answer_is_a_write_that_is_stored(
    program: str, request: pytest.FixtureRequest, database_url: str, organization: str
) -> None:
    work = Workload(operation="upsert", organization=organization, organizations=3)
    measured = await load(request.getfixturevalue(program), work, seconds=1)
    [(code, count)] = measured.answers.items()
    assert code == {"service": "OK", "gateway": "201"}[program]
    assert count == stored(database_url, organization) > 64
    assert 0 < measured.latency.p50 <= measured.latency.p95 <= measured.latency.p99
    assert measured.cpu_seconds > 0


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed")
@pytest.mark.parametrize(
    ("operation", "codes"),
    [
        ("contend", {"201", "409"}),
        ("get", {"200"}),
        ("list", {"200"}),
        ("page", {"200"}),
        ("availability", {"200"}),
        ("calendar", {"200"}),
        ("booking", {"200"}),
    ],
)
def test_wrk_asks_for_the_same(
    gateway: Program,
    database_url: str,
    organization: str,
    operation: Operation,
    codes: set[str],
) -> None:
    work = Workload(operation=operation, organization=organization, organizations=2, stored=30)
    preload(database_url, organization, organizations=2, stored=30)
    measured = wrk(gateway.address, work, connections=16, seconds=1)
    assert measured.answers.keys() == codes


def test_no_run_asks_for_a_week_that_another_has_asked_for() -> None:
    starts = [(run * NUMBERS + number) % WEEKS for run in range(10) for number in range(20_000)]
    assert len(set(starts)) == len(starts)
    assert (max(starts) + 7 * 24 * 60) * 60 < YEAR


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed")
def test_an_empty_server_answers_with_a_response_of_the_load(
    service: Program, gateway: Program, database_url: str, organization: str, tmp_path: Path
) -> None:
    preload(database_url, organization, organizations=2, stored=30)
    work = Workload(operation="list", organization=organization, organizations=2, stored=30)
    by_grpc = driver(service.address, work, protocol="grpc", callers=8, seconds=0.3)
    listed = ListAppointmentsResponse.FromString(by_grpc.response)
    by_rest = wrk(gateway.address, work, connections=8, seconds=1)
    assert len(listed.appointments) == len(json.loads(by_rest.response)["appointments"]) == WINDOW
    environment = {**base_environment(), **ANY_PORT, "DATABASE_URL": database_url}
    servers = EmptyServers(environment, tmp_path)
    try:
        grpc = servers.start("gRPC", by_grpc.response)
        rest = servers.start("REST", by_rest.response)
        again = driver(grpc.address, work, protocol="grpc", callers=8, seconds=0.3)
        assert again.answers.keys() == {"OK"}
        assert again.response == by_grpc.response
        for requests in (work, Workload(operation="upsert", organization=organization)):
            again = wrk(rest.address, requests, connections=8, seconds=1)
            assert again.answers.keys() == {"200"}
            assert again.response == by_rest.response
    finally:
        servers.stop()


def made(load: Load, *, rate: int, p50: float, empty: Empty | None = None) -> Run:
    return Run(
        load=load,
        organization="",
        measured=figures(rate, p50),
        cpu_seconds={"service": 0.3, "gateway": 0.5},
        empty=empty,
    )


def figures(rate: int, p50: float) -> Measured:
    return Measured(
        answers={"OK": rate},
        seconds=1.0,
        cpu_seconds=0.1,
        latency=Latency(p50=p50, p95=p50, p99=p50),
    )


def test_ratios_are_those_of_each_round() -> None:
    limits = [Load(interface="SQL", in_flight=number) for number in (1, 16)]
    loads = [
        Load(interface="gRPC", in_flight=1),
        Load(interface="REST", in_flight=16),
        Load(interface="REST", in_flight=64),
    ]
    runs = []
    for speed in (1, 2, 5):  # the machine's in each round
        empty = Empty(measured=figures(1_000 * speed, 1.0), cpu_seconds=0.2)
        runs += [
            made(limits[0], rate=200 * speed, p50=2.0 / speed),
            made(limits[1], rate=800 * speed, p50=20.0 / speed),
            made(loads[0], rate=100 * speed, p50=7.0 / speed, empty=empty),
            made(loads[1], rate=500 * speed, p50=30.0 / speed, empty=empty),
            made(loads[2], rate=400 * speed, p50=90.0 / speed),
        ]
    group = Group(name="hot", title="one organization", limits=limits, loads=loads)
    grpc, sixteen, many = rows(group, runs, {})[2:]
    assert [row.ratio for row in (grpc, sixteen, many)] == [0.5, 0.625, 0.5]
    assert [row.p50_ratio for row in (grpc, sixteen, many)] == [3.5, 1.5, None]
    assert grpc.empty is not None
    assert grpc.empty.per_second == 2_000
    assert [grpc.empty.cpu_us, grpc.empty.ratio, grpc.empty.cpu_ratio] == pytest.approx(
        [100, 0.1, 15]
    )
    # By REST, an empty server stands for gateway and service.
    assert sixteen.empty is not None
    assert sixteen.empty.cpu_ratio == pytest.approx(8)
    assert many.empty is None


async def test_what_exceeds_the_flow_control_window_is_sent_when_there_is_room(
    service: Program, database_url: str
) -> None:
    organization = f"{uuid.uuid4()}"
    work = Workload(operation="batch", organization=organization)
    measured = await load(service, work, callers=16)  # more than 64 KiB at once
    assert measured.answers.keys() == {"OK"}
    assert stored(database_url, organization) == BATCH * measured.answers["OK"]


async def test_refusals_are_counted_by_their_code(service: Program, organization: str) -> None:
    contended = Workload(operation="contend", organization=organization)
    measured = await load(service, contended, seconds=1)
    assert measured.answers.keys() == {"OK", "ALREADY_EXISTS"}
    assert SLOTS / 100 < measured.answers["OK"] < SLOTS
    measured = await load(service, Workload(operation="upsert", organization="x" * 200))
    assert measured.answers.keys() == {"INVALID_ARGUMENT"}


async def test_a_lost_connection_is_an_error_and_no_hang(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service(**PATIENT)
    work = Workload(operation="upsert", organization=organization)
    with held_lock(database_url, f"{organization}-0") as lock:
        loading = asyncio.create_task(load(service, work, callers=8))
        await asyncio.to_thread(lock.wait_for, 1)
        service.kill()
        measured = await loading
    assert measured.answers == {"CONNECTION_LOST": 8}


async def test_a_server_that_says_goodbye_is_asked_no_more(
    start_service: StartProgram, database_url: str, organization: str
) -> None:
    service = start_service()
    work = Workload(operation="upsert", organization=organization)
    loading = asyncio.create_task(load(service, work, seconds=60))
    await asyncio.to_thread(until, lambda: stored(database_url, organization) > 100)
    service.process.terminate()
    async with asyncio.timeout(20):
        measured = await loading
    # Calls that it no longer accepts end with CANCELLED or GOAWAY.
    assert measured.answers.keys() <= {"OK", "CANCELLED", "UNAVAILABLE", "GOAWAY", "RST_STREAM"}
    assert measured.answers["OK"] == stored(database_url, organization)


def test_overlaps_are_seen_that_no_constraint_refused(create_database: CreateDatabase) -> None:
    url = create_database()
    preload(url, "preloaded", organizations=2, stored=3)
    assert overlapping(url) == 0
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE appointments DROP CONSTRAINT appointments_no_overlap")
        connection.execute(
            "UPDATE appointments SET end_time = end_time + interval '1 day'"
            " WHERE organization_id = 'preloaded-1'"
        )
    assert overlapping(url) == 2


def test_a_quick_run_has_no_errors_and_can_be_drawn(tmp_path: Path) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "picture.svg"
    run("bench", "--quick", "--only", "hot", "--json", str(results))
    found = json.loads(results.read_text())
    assert found["overlapping"] == 0
    interfaces = [row["load"]["interface"] for row in found["rows"]]
    assert interfaces == ["SQL", "gRPC", *(["REST"] if wrk_is_installed() else [])]
    for row in found["rows"]:
        check(row)
        if row["load"]["interface"] != "SQL":
            assert min(row["empty"].values()) > 0
    run("bench.plot", str(results), str(picture))
    assert "PostgreSQL alone" in picture.read_text()
    assert "gRPC, an empty server" in picture.read_text()


def states(database_url: str, organization: str) -> dict[str, int]:
    with psycopg.connect(database_url) as connection:
        return dict(
            connection.execute(
                "SELECT state, count(*) FROM appointments WHERE starts_with(organization_id, %s)"
                " GROUP BY state",
                [organization],
            ).fetchall()
        )


async def test_every_second_call_confirms_a_hold(
    service: Program, database_url: str, organization: str
) -> None:
    work = Workload(operation="hold", organization=organization, organizations=3, first=7)
    measured = await load(service, work, seconds=2)
    assert measured.answers.keys() == {"OK"}
    found = states(database_url, organization)
    assert HOLDS_AHEAD <= found["HELD"] <= HOLDS_AHEAD + 1
    assert found["HELD"] + 2 * found["ACTIVE"] == measured.answers["OK"]


def test_every_second_transaction_of_the_limit_confirms_a_hold(
    database_url: str, organization: str
) -> None:
    work = Workload(operation="hold", organization=organization, organizations=3, first=7)
    measured = pgbench(database_url, work, clients=2, seconds=1)
    found = states(database_url, organization)
    assert found.get("HELD", 0) <= 2
    assert found.get("HELD", 0) + 2 * found["ACTIVE"] == measured.answers["OK"]


@pytest.mark.timeout(600)
def test_holds_are_compared_with_their_statements(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run("bench", "--quick", "--only", "holds", "--json", str(results))
    found = json.loads(results.read_text())
    assert found["overlapping"] == 0
    assert [row["load"]["interface"] for row in found["rows"]] == ["SQL", "gRPC"] * 2
    for row in found["rows"]:
        check(row)


@pytest.mark.timeout(600)
def test_availability_is_compared_with_its_statement(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    # A year takes a slow machine more than the second of --quick.
    run("bench", "--quick", "--only", "availability", "--seconds", "3", "--json", str(results))
    found = json.loads(results.read_text())
    operations = [row["load"]["operation"] for row in found["rows"]]
    each = 3 if wrk_is_installed() else 2
    assert operations == ["availability"] * each + ["calendar"] * each + ["booking"] * each * 2
    for row in found["rows"]:
        check(row)


@pytest.mark.timeout(600)
def test_what_is_accepted_is_applied_and_both_are_measured(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run("bench", "--quick", "--only", "eventual", "--json", str(results))
    found = json.loads(results.read_text())
    assert (found["overlapping"], found["missing"]) == (0, 0)
    queues = 2 if server_script() else 1
    by_worker = [row for row in found["rows"] if row["load"]["interface"] == "worker"]
    delayed = [row for row in found["rows"] if row["delay_ms"] is not None]
    assert (len(by_worker), len(delayed)) == (queues, 2 * queues)
    for row in found["rows"]:
        assert row["errors"] == {}
        assert row["per_second"] > 0
        assert (row["ratio"] is None) == (row["load"]["operation"] == "upsert")
    for row in by_worker:
        assert min(row["cpu_us"]["worker"], row["cpu_us"]["postgresql"]) > 0
    for row in delayed:
        delay = row["delay_ms"]
        assert 0 < delay["p50"] <= delay["p95"] <= delay["p99"]


def test_accepted_writes_that_nobody_applies_are_missing(
    create_database: CreateDatabase, start_service: StartProgram
) -> None:
    url = create_database()
    service = start_service(DATABASE_URL=url)
    work = Workload(operation="submit", organization="accepted", organizations=3)
    measured = driver(service.address, work, protocol="grpc", callers=8, seconds=0.2)
    assert measured.answers.keys() == {"OK"}
    assert missing(url, {"accepted": measured.answers["OK"]}) == measured.answers["OK"] > 0


async def test_a_rate_is_kept(service: Program, organization: str) -> None:
    work = Workload(operation="upsert", organization=organization)
    measured = await drive(
        protocol="grpc",
        address=service.address,
        workload=asdict(work),
        callers=8,
        seconds=1.0,
        pause=0.0,
        rate=80.0,
    )
    # Ten each; the first requests are spread over a tenth of a second.
    assert 40 <= measured.answers["OK"] <= 88


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed")
@pytest.mark.parametrize("to", ["terminal", "file"])
def test_what_logging_costs_is_measured(to: str) -> None:
    said = run("bench.logs", "--to", to, "--rounds", "1", "--seconds", "1")
    for what in ("writes", "reads"):
        rates = [
            float(rate.replace(",", ""))
            for rate in re.findall(rf"(?m)^{what} to a {to}, LOG_LEVEL=\w+: ([\d,]+)/s", said)
        ]
        assert len(rates) == 2
        assert min(rates) > 0
        ratio = re.search(rf"(?m)^{what} to a {to}: ([\d.]+) of the rate$", said)
        assert ratio is not None
        assert float(ratio[1]) == pytest.approx(rates[1] / rates[0], abs=0.02)
    for form in ("text", "json"):
        cost = re.search(rf"(?m)^a line as {form}: ([\d.]+) µs$", said)
        assert cost is not None
        assert 0 < float(cost[1]) < 100


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed")
def test_what_logging_costs_the_programs_is_measured() -> None:
    said = run("bench.logs", "--to", "json", "--rounds", "1", "--seconds", "1")
    rates = re.findall(r"(?m)^  LOG_LEVEL=\w+ +([\d,]+)/s", said)
    assert len(rates) == 4
    assert all(int(rate.replace(",", "")) > 0 for rate in rates)


COSTS = {
    "bench.credentials": [
        "without access control",
        "the same again",
        "the same with X-Actor",
        "token",
        "API key",
    ],
    "bench.tracing": ["no traces", "the same again", "1 % sampled", "all sampled"],
}


def test_idle_programs_are_measured() -> None:
    said = run("bench.idle", "--rounds", "1", "--seconds", "1")
    shares = dict(re.findall(r"(?m)^([a-z, ]+): ([\d.]+)%", said))
    parts = [float(shares[name]) for name in ("service", "worker", "gateway")]
    assert float(shares["service, worker and gateway"]) == pytest.approx(sum(parts), abs=0.02)
    assert "postgresql" in shares


@pytest.mark.skipif(not wrk_is_installed(), reason="wrk is not installed")
@pytest.mark.parametrize("module", COSTS)
def test_what_access_control_and_traces_cost_is_measured(module: str) -> None:
    said = run(module, "--rounds", "1").splitlines()
    callers = COSTS[module]
    half = 1 + len(callers)
    assert [said[0], said[half]] == ["upsert, 1 rounds of 1 s", "get, 1 rounds of 1 s"]
    for group in (said[1:half], said[half + 1 : 2 * half]):
        costs = []
        for line in group:
            found = re.fullmatch(
                r"  (.{26}) +([\d,]+)/s  gateway +(\d+) µs  service +(\d+) µs"
                r"  CPU ([\d.]+) \([\d.]+ to [\d.]+\)  rate [\d.]+"
                r"  least CPU +\d+ µs \([\d.]+\)",
                line,
            )
            assert found is not None, line
            assert int(found[2].replace(",", "")) > 0
            costs.append((found[1].rstrip(), int(found[3]) + int(found[4]), float(found[5])))
        assert [title for title, _, _ in costs] == callers
        for _, cost, ratio in costs:
            assert ratio == pytest.approx(cost / costs[0][1], abs=0.02)


def test_lists_of_the_past_are_compared_with_those_of_today() -> None:
    said = run("bench.history", "--changes", "2000", "--rounds", "3").splitlines()
    titles = [line[:34].rstrip() for line in said]
    assert titles == [
        "no window",
        "from",
        "from and to",
        "one of 50 resources",
        "one of 50 resources, from and to",
        "by revision",
        "by revision, from a quarter on",
    ]
    for line in said:
        figures = re.fullmatch(r".{34} +([\d.]+) ms  today +([\d.]+) ms  \(([\d.]+)\)", line)
        assert figures, line
        assert min(map(float, figures.groups())) > 0


def test_the_check_of_a_database_is_measured() -> None:
    said = run("bench.verify", "--changes", "4000", "--rounds", "1")
    figures = re.fullmatch(
        r"([\d.]+) s, CPU ([\d.]+) s and ([\d.]+) s of PostgreSQL, (\d+) MiB of memory,"
        r" (\d+) MiB of temporary files\n"
        r"sound: organizations 1,001, appointments 2,000, changes 4,000;"
        r" digests computed again 2,000, not computable 0\n",
        said,
    )
    assert figures is not None, said
    assert min(map(float, figures.groups()[:-1])) > 0


@pytest.mark.parametrize("format_", ["jsonl", "csv", "ics"])
def test_imports_are_compared_with_batches(format_: str) -> None:
    arguments = ("--rows", "2000", "--rounds", "1", "--seconds", "0.5", "--format", format_)
    first, last = run("bench.imports", *arguments).splitlines()
    figures = re.fullmatch(
        r"([\d,]+) imported a second, ([\d,]+) and ([\d,]+) by batches: ([\d.]+)", first
    )
    assert figures is not None, first
    assert min(float(figure.replace(",", "")) for figure in figures.groups()) > 0
    assert last == f"2,000 rows of {format_}: {figures[4]} of the batch rate"


def test_conditional_lists_and_patches_are_measured() -> None:
    said = run("bench.conditional", "--rounds", "1", "--requests", "60").splitlines()
    assert len(said) == 9
    groups = [said[:3], said[3:6], said[6:]]
    for group in groups:
        costs = []
        for line in group:
            found = re.fullmatch(
                r".{26} gateway +(\d+) µs  service +(\d+) µs  postgresql +\d+ µs  \(([\d.]+)\)",
                line,
            )
            assert found is not None, line
            costs.append((int(found[1]) + int(found[2]), float(found[3])))
        for cost, ratio in costs:
            assert ratio == pytest.approx(cost / costs[0][0], abs=0.02)


def test_the_cost_of_tls_is_measured() -> None:
    said = run("bench.tls", "--rounds", "1", "--requests", "64", "--new-connections", "32")
    lines = said.splitlines()
    assert len(lines) == 8
    for line in lines:
        found = re.fullmatch(
            r".{22} (?:plain|TLS  )  gateway +(\d+) µs  service +(\d+) µs  \(([\d.]+)\)", line
        )
        assert found is not None, line
        assert int(found[1]) + int(found[2]) > 0
    assert [line.endswith("(1.00)") for line in lines[::2]] == [True] * 4


@pytest.mark.skipif(pgbouncer_program() is None, reason="pgbouncer is not installed")
def test_the_cost_of_a_pooler_is_measured() -> None:
    lines = run("bench.pooler", "--rounds", "1", "--seconds", "1").splitlines()
    assert len(lines) == 8
    for direct, pooled in zip(lines[::2], lines[1::2], strict=True):
        for way, line in (("direct", direct), ("PgBouncer", pooled)):
            found = re.fullmatch(
                rf".{{27}} {way:10} +([\d,]+)/s \(([\d.]+)\)   service +(\d+) µs"
                r"  postgresql +(\d+) µs  pgbouncer +(\d+) µs  \(([\d.]+)\)",
                line,
            )
            assert found is not None, line
            assert min(int(found[1].replace(",", "")), int(found[3]), int(found[4])) > 0
            assert way != "direct" or (found[2], found[5], found[6]) == ("1.00", "0", "1.00")


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_both_routers_are_measured() -> None:
    for took in (await measure(rounds=1)).values():
        assert took.keys() == {"no router", "our router", "aiohttp's"}
        assert min(took.values()) > 0


def check(row: Mapping[str, Any]) -> None:
    assert row["errors"] == {}
    assert row["per_second"] > 0
    latency = row["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert min(row["cpu_us"]["load"], row["cpu_us"]["postgresql"]) > 0
    assert min(row["peak_mib"].values()) > 0
    if row["load"]["interface"] == "SQL":
        assert row["ratio"] is None
    else:
        assert row["ratio"] > 0
        assert row["cpu_us"]["service"] > 0


def test_all_forms_of_a_result_have_the_same_appointments(create_database: CreateDatabase) -> None:
    with writers(create_database()) as made:
        found = {title: writer.write(3) for title, writer in made.items()}
        assert len(found) == 6
        first, *others = (
            [(each.id, each.start, each.end, each.title, each.revision) for each in appointments]
            for appointments in found.values()
        )
        assert [revision for *_, revision in first] == [1, 2, 3]
        assert all(other == first for other in others)
        assert all(min(writer.measure(2, 2)) > 0 for writer in made.values())


def test_an_attack_is_measured() -> None:
    [said] = run("bench.abuse", "deep-bodies", "--seconds", "1", "--rate", "5").splitlines()
    name, ratio, noticed, outcome = re.fullmatch(
        r"(\S+) +p99 +([0-9.]+) times \(.*?\) +(MiB: .*?) +failed: none +(\{.*\})", said
    ).groups()  # type: ignore[union-attr]
    assert (name, float(ratio) > 0) == ("deep-bodies", True)
    assert [part.split()[0] for part in noticed.removeprefix("MiB: ").split(", ")] == [
        "service",
        "gateway",
        "worker",
    ]
    assert "'400'" in outcome
