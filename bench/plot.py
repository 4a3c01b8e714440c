"""`python -m bench.plot RESULTS.json OUT.svg`: draw the main loads and their limits."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

Row = dict[str, Any]

IN_FLIGHT = 64
# Distinguishable with any colour vision (Okabe and Ito) and by lightness.
COLOURS = {"gRPC": "#0072B2", "REST": "#E69F00"}
LIMIT = "PostgreSQL alone (pgbench, one request a transaction)"
EMPTY = "an empty server"
BAR = 0.38
THOUSANDS = StrMethodFormatter("{x:,.0f}")


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
def main(results: Path, out: Path) -> None:
    """Draw the results that `python -m bench --json RESULTS` wrote."""
    found = json.loads(results.read_text())
    rows = [row for row in found["rows"] if row["load"]["in_flight"] == IN_FLIGHT]
    measured = [row for row in rows if row["ratio"] is not None]
    with mpl.rc_context(
        {
            "font.family": "sans-serif",
            "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans", "sans-serif"],
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "bench",  # the same results give the same file
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        writes, reads, growth = figure.subplots(1, 3, width_ratios=[4, 3, 3])
        _bars(writes, "Writes a second", measured, ("hot", "many", "contended"))
        _bars(reads, "Reads a second", measured, ("reads",))
        _lines(growth, measured)
        handles, labels = writes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(f"{IN_FLIGHT} requests in flight, {found['machine']}", fontsize="medium")
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": "Performance"})


def _bars(axes: Axes, title: str, rows: Sequence[Row], groups: Sequence[str]) -> None:
    """Draw bars by title and interface, with limit and empty servers as lines."""
    shown = [row for row in rows if row["group"] in groups]
    titles = list(dict.fromkeys(row["title"] for row in shown))
    for side, (interface, colour) in zip((-0.5, 0.5), COLOURS.items(), strict=True):
        of_one = [row for row in shown if row["load"]["interface"] == interface]
        positions = [titles.index(row["title"]) + side * BAR for row in of_one]
        bars = axes.barh(
            positions, [row["per_second"] for row in of_one], BAR, color=colour, label=interface
        )
        labels = [f"{row['per_second']:,.0f}" for row in of_one]
        axes.bar_label(bars, labels, padding=3, zorder=4, fontsize="small")
        compared = [
            (position, row["empty"]["per_second"])
            for position, row in zip(positions, of_one, strict=True)
            if row["empty"]
        ]
        axes.vlines(
            [rate for _, rate in compared],
            [position - BAR / 2 for position, _ in compared],
            [position + BAR / 2 for position, _ in compared],
            color=colour,
            linewidth=2,
            linestyle=":",
            label=f"{interface}, {EMPTY}",
        )
    limits = {titles.index(row["title"]): row["limit_per_second"] for row in shown}
    low, high = [position - BAR for position in limits], [position + BAR for position in limits]
    axes.vlines(list(limits.values()), low, high, color="black", linewidth=2, label=LIMIT)
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_title(title, fontsize="medium")
    axes.margins(x=0.15)


def _lines(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the write rate of one organization by its number of appointments."""
    shown = sorted(
        (row for row in rows if row["group"] == "growth"), key=lambda row: row["load"]["stored"]
    )
    for interface, colour in COLOURS.items():
        of_one = [row for row in shown if row["load"]["interface"] == interface]
        stored = [row["load"]["stored"] for row in of_one]
        axes.plot(stored, [row["per_second"] for row in of_one], marker="o", color=colour)
        if interface == "gRPC":
            limits = [row["limit_per_second"] for row in of_one]
            axes.plot(stored, limits, marker="s", color="black", linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["load"]["stored"] for row in shown}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.set_ylim(bottom=0)
    axes.set_title("Writes, by number stored", fontsize="medium")


if __name__ == "__main__":
    main()
