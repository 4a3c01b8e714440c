"""The benchmark runs, and what it writes can be read."""

import json
import subprocess
import sys
from pathlib import Path

from scripts.programs import ROOT


def test_the_benchmark_measures_every_load_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench", "--seconds", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    assert [(row["load"], row["in_flight"]) for row in results["rows"]] == [
        ("hot organization", 1),
        ("hot organization", 64),
        ("1,000 organizations", 1),
        ("1,000 organizations", 64),
    ]
    for row in results["rows"]:
        assert row["errors"] == {}
        assert row["per_second"] > 0
        assert row["limit_per_second"] > 0
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert min(row["service_us"], row["postgres_us"], row["service_peak_mib"]) > 0
