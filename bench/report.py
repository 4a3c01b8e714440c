"""The report: a row per load or limit, and a table of all rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from bench.measure import Run
from bench.measured import CONFLICTS, GOOD, REFUSALS, Latency, Measured
from bench.plan import Group, Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The medians over the rounds of a load or limit, and the total number of responses.

    Rates are per second. `cpu_us` is CPU time per response by program, in microseconds;
    `peak_mib` the peak resident memory by program. Ratios are the medians of the rounds' own.
    `ratio` is that of the rate to the limit's, `p50_ratio` that of the median latency to the one
    of the limit with as many in flight, if there is one. `empty` has the ratios to an empty
    server, if measured. `delay_ms` is the time from acceptance to result of asynchronous writes.
    """

    group: str
    title: str
    load: Load
    per_second: float
    limit_per_second: float | None
    ratio: float | None
    p50_ratio: float | None
    empty: "Empties | None"
    latency_ms: Latency
    delay_ms: Latency | None
    refused_per_second: float
    refusal_latency_ms: Latency | None
    answers: dict[str, int]
    errors: dict[str, int]
    cpu_us: dict[str, float]
    peak_mib: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Empties:
    """The medians of an empty server, and the ratios of a load to it.

    `cpu_ratio` is that of the CPU time per response: by gRPC of the service, by REST of gateway
    and service together.
    """

    per_second: float
    cpu_us: float
    ratio: float
    cpu_ratio: float


def rows(group: Group, runs: Sequence[Run], peak_mib: Mapping[str, float]) -> list[Row]:
    """Return the rows of a group's limits and loads."""
    runs_of = {
        load: [run for run in runs if run.load == load] for load in (*group.limits, *group.loads)
    }
    rates = {load: [_rate(run) for run in own] for load, own in runs_of.items()}

    def row(load: Load) -> Row:
        own = runs_of[load]
        measured = [run.measured for run in own]
        answers = sum((Counter(each.answers) for each in measured), Counter[str]())
        spent = {"load": sum(each.cpu_seconds for each in measured)}
        for name in own[0].cpu_seconds:
            spent[name] = sum(run.cpu_seconds[name] for run in own)
        limits = group.limits_of(load)
        limit = [max(each) for each in zip(*(rates[limit] for limit in limits), strict=True)]
        as_many = [runs_of[limit] for limit in limits if limit.in_flight == load.in_flight]
        refusals = [each.refusals for each in measured if each.refusals is not None]
        delays = [run.delays for run in own if run.delays is not None]
        return Row(
            group=group.name,
            title=load.title or group.title,
            load=load,
            per_second=median(rates[load]),
            limit_per_second=median(limit) if limit else None,
            ratio=median(map(float.__truediv__, rates[load], limit)) if limit else None,
            p50_ratio=_p50_ratio(own, as_many[0]) if as_many else None,
            empty=_empties(own),
            latency_ms=Latency.median([each.latency for each in measured]),
            delay_ms=Latency.median(delays) if delays else None,
            refused_per_second=median(each.per_second(REFUSALS) for each in measured),
            refusal_latency_ms=Latency.median(refusals) if refusals else None,
            answers=dict(answers),
            errors={
                code: count
                for code, count in answers.items()
                if code not in _good(load) and not (load.polite and code in REFUSALS)
            },
            cpu_us={
                name: seconds / max(answers.total(), 1) * 1e6 for name, seconds in spent.items()
            },
            peak_mib=dict(peak_mib),
        )

    return [row(load) for load in rates]


def _rate(run: Run) -> float:
    return run.measured.per_second(_good(run.load))


def _p50_ratio(own: Sequence[Run], limits: Sequence[Run]) -> float:
    return median(
        run.measured.latency.p50 / limit.measured.latency.p50
        for run, limit in zip(own, limits, strict=True)
    )


def _empties(own: Sequence[Run]) -> Empties | None:
    pairs = [(run, run.empty) for run in own if run.empty is not None]
    if not pairs:
        return None
    return Empties(
        per_second=median(empty.measured.per_second(GOOD) for _, empty in pairs),
        cpu_us=median(_cpu_us(empty.cpu_seconds, empty.measured) for _, empty in pairs),
        ratio=median(_rate(run) / empty.measured.per_second(GOOD) for run, empty in pairs),
        cpu_ratio=median(
            _cpu_us(_own_cpu_seconds(run), run.measured)
            / _cpu_us(empty.cpu_seconds, empty.measured)
            for run, empty in pairs
        ),
    )


def _cpu_us(seconds: float, measured: Measured) -> float:
    return seconds / sum(measured.answers.values()) * 1e6


def _own_cpu_seconds(run: Run) -> float:
    """Return the CPU time of the programs that an empty server stands for."""
    service = run.cpu_seconds["service"]
    return service if run.load.interface == "gRPC" else service + run.cpu_seconds["gateway"]


def _good(load: Load) -> frozenset[str]:
    """Return the codes of success; for loads that collide on purpose, also conflicts."""
    return GOOD | CONFLICTS if load.operation == "contend" else GOOD


def table(found: Sequence[Row]) -> Table:
    """Return a table of all rows, with a section per title."""
    shown = Table()
    shown.add_column("load", no_wrap=True)
    shown.add_column("by", no_wrap=True)
    for name in (
        "in flight",
        "per second",
        "of the\nlimit",
        "of\nempty",
        "CPU, of\nempty",
        "p50, of\nlimit",
        "p50\nms",
        "p95\nms",
        "p99\nms",
        "answers",
        "gateway\nµs",
        "service\nµs",
        "worker\nµs",
        "database\nµs",
        "broker\nµs",
        "load\nµs",
        "gateway\nMiB",
        "service\nMiB",
    ):
        shown.add_column(name, justify="right", overflow="fold")
    title = ""
    for row in found:
        if row.title != title:
            shown.add_section()
        shown.add_row(
            row.title if row.title != title else "",
            row.load.interface,
            f"{row.load.in_flight:,}",
            f"{row.per_second:,.0f}",
            "limit" if row.ratio is None else f"{row.ratio:.2f}",
            *([f"{row.empty.ratio:.2f}", f"{row.empty.cpu_ratio:.2f}"] if row.empty else ["", ""]),
            "" if row.p50_ratio is None else f"{row.p50_ratio:.1f}",
            *_latency(row.latency_ms),
            _answers(row),
            *(f"{row.cpu_us[name]:,.0f}" if name in row.cpu_us else "" for name in _PROGRAMS),
            *(f"{row.peak_mib[name]:,.0f}" for name in ("gateway", "service")),
            style="dim" if row.ratio is None else "",
        )
        if row.refusal_latency_ms is not None:
            shown.add_row(
                "  refused",
                row.load.interface,
                "",
                f"{row.refused_per_second:,.0f}",
                "",
                "",
                "",
                "",
                *_latency(row.refusal_latency_ms),
            )
        if row.delay_ms is not None:
            shown.add_row("  until applied", *[""] * 7, *_latency(row.delay_ms))
        title = row.title
    return shown


# In the order of the table's columns.
_PROGRAMS = ("gateway", "service", "worker", "postgresql", "rabbitmq", "load")


def _answers(row: Row) -> str:
    """Return OK, or all codes with their counts if there were others."""
    if not row.errors and not row.answers.keys() & (CONFLICTS | REFUSALS):
        return "OK"
    return "\n".join(f"{count:,} {code}" for code, count in row.answers.items())


def _latency(latency: Latency) -> list[str]:
    times = (latency.p50, latency.p95, latency.p99)
    return [f"{milliseconds:.1f}" if milliseconds else "" for milliseconds in times]
