"""The figures of the model in docs/scaling.md follow from those in docs/performance.md."""

import re

import pytest

from local.programs import ROOT

PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
SCALING = (ROOT / "docs" / "scaling.md").read_text()

# Of the coordinator, in µs: for a call, and for each row of its result. docs/scaling.md has them.
CALL, ROW = 238, 20


def cpu_of_postgresql(load: str, in_flight: int) -> int:
    """The CPU time of PostgreSQL for a call of the SQL function, in µs."""
    rows = iter(PERFORMANCE.splitlines())
    named = ""
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")[1:-1]]
        if len(cells) == 15:
            named = cells[0] or named
            if (named, cells[1], cells[2]) == (load, "SQL", str(in_flight)):
                return int(cells[13].replace(",", ""))
    raise AssertionError(f"no row for {load}")


def test_the_table_is_what_the_formula_says() -> None:
    single = cpu_of_postgresql("1,000 organizations", 16)
    hundred = cpu_of_postgresql("batches of 100", 1)
    write = (hundred - single) / 99
    call = single - write
    [(said_call, said_write)] = re.findall(r"(\d+) µs for a call\nand (\d+) µs for a", SCALING)
    assert int(said_call) == pytest.approx(call, abs=1)
    assert int(said_write) == pytest.approx(write, abs=1)
    table = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$", SCALING, re.MULTILINE)
    assert [int(row[0]) for row in table] == [1, 8, 64]
    for row in table:
        together = int(row[0])
        coordinator = together * 1e6 / (CALL + ROW * together)
        node = together * 1e6 / (call + write * together)
        assert float(row[1].replace(",", "")) == pytest.approx(coordinator, rel=0.02)
        assert float(row[2].replace(",", "")) == pytest.approx(node, rel=0.02)
        assert float(row[3]) == pytest.approx(coordinator / node, rel=0.03)
