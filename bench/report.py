"""The report: a row per load or limit, and a table of all rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from bench.measure import Run
from bench.measured import CONFLICTS, GOOD, REFUSALS, Latency
from bench.plan import Group, Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The medians over the rounds of a load or limit, and the total number of responses.

    Rates are per second. `cpu_us` is CPU time per response by program, in microseconds;
    `peak_mib` the peak resident memory by program. `ratio` is the median of the ratios of
    the rounds. `delay_ms` is the time from acceptance to result of asynchronous writes.
    """

    group: str
    title: str
    load: Load
    per_second: float
    limit_per_second: float | None
    ratio: float | None
    latency_ms: Latency
    delay_ms: Latency | None
    refused_per_second: float
    refusal_latency_ms: Latency | None
    answers: dict[str, int]
    errors: dict[str, int]
    cpu_us: dict[str, float]
    peak_mib: dict[str, float]


def rows(group: Group, runs: Sequence[Run], peak_mib: Mapping[str, float]) -> list[Row]:
    """Return the rows of a group's limits and loads."""
    rates = {
        load: [run.measured.per_second(_good(load)) for run in runs if run.load == load]
        for load in (*group.limits, *group.loads)
    }

    def row(load: Load) -> Row:
        own = [run for run in runs if run.load == load]
        measured = [run.measured for run in own]
        answers = sum((Counter(each.answers) for each in measured), Counter[str]())
        spent = {"load": sum(each.cpu_seconds for each in measured)}
        for name in own[0].cpu_seconds:
            spent[name] = sum(run.cpu_seconds[name] for run in own)
        limits = [rates[limit] for limit in group.limits_of(load)]
        limit = [max(of_round) for of_round in zip(*limits, strict=True)]
        refusals = [each.refusals for each in measured if each.refusals is not None]
        delays = [run.delays for run in own if run.delays is not None]
        return Row(
            group=group.name,
            title=load.title or group.title,
            load=load,
            per_second=median(rates[load]),
            limit_per_second=median(limit) if limit else None,
            ratio=median(map(float.__truediv__, rates[load], limit)) if limit else None,
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
                *_latency(row.refusal_latency_ms),
            )
        if row.delay_ms is not None:
            shown.add_row("  until applied", "", "", "", "", *_latency(row.delay_ms))
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
