"""The alerts, the dashboard and the runbook agree with the metrics and with each other."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram

import gateway.metrics
import service.metrics
from local.programs import ROOT

ALERTS = ROOT / "deploy/prometheus/alerts.yml"
ALERTS_TEST = ROOT / "deploy/prometheus/alerts_test.yml"
DASHBOARD = ROOT / "deploy/grafana/appointments.json"
RUNBOOK = ROOT / "docs/runbook.md"

# A metric of ours with the labels that it is selected by, and the labels of a group.
SELECTOR = re.compile(r"\b((?:appointments|gateway)_\w+)(?:\{([^}]*)\})?")
GROUP = re.compile(r"\b(?:by|ignoring) \(([^)]*)\)")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
# What Grafana fills in.
INTERVAL = "$__rate_interval"


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> Iterator[tuple[str, str]]:
    """Each expression of the dashboard with the title of its panel."""
    for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def exposed() -> dict[str, set[str]]:
    """The labels of every sample that the programs can expose, by its name."""
    of_gateway = gateway.metrics.Metrics(in_flight=lambda: 0, streams=lambda: 0)
    registries: list[CollectorRegistry] = [service.metrics.Metrics().registry, of_gateway.registry]
    samples: dict[str, set[str]] = {}
    for registry in registries:
        for collector, names in registry._collector_to_names.items():
            labels = set(getattr(collector, "_labelnames", ()))
            for name in names:
                if name.endswith("_created"):
                    continue
                bucket = name.endswith("_bucket")
                # The names of families are no samples, except those of gauges.
                if isinstance(collector, Histogram | Counter) and name == collector._name:
                    continue
                samples[name] = {*labels, "le"} if bucket else labels
    return samples


EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in rules()),
    *panels(),
]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_every_metric_exists_with_these_labels(where: str, expression: str) -> None:
    samples = exposed()
    selected = SELECTOR.findall(expression)
    assert selected
    for name, matchers in selected:
        assert name in samples
        assert set(MATCHER.findall(matchers)) <= samples[name]
    common = set.intersection(*(samples[name] for name, _ in selected))
    for group in GROUP.findall(expression):
        assert {label.strip() for label in group.split(",")} <= common


def test_every_alert_has_an_entry_in_the_runbook() -> None:
    text = RUNBOOK.read_text("utf-8")
    entries = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert entries == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    for entry in text.split("\n## ")[1:]:
        for part in ("**For callers:** ", "**Look:** ", "**Do:** "):
            assert entry.count(f"\n{part}") == 1, entry.partition("\n")[0]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None and not os.environ.get("CI"):
        pytest.skip("promtool is not installed (Debian and Ubuntu: apt install prometheus)")
    return found or "promtool"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should(promtool: str) -> None:
    run(promtool, "check", "rules", str(ALERTS))
    run(promtool, "test", "rules", str(ALERTS_TEST))


def test_every_alert_is_tested() -> None:
    tested = ALERTS_TEST.read_text("utf-8")
    assert [rule["alert"] for rule in rules() if f'"{rule["alert"]}"' not in tested] == []


def test_the_expressions_of_the_dashboard_are_valid(promtool: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    recorded = [
        {"record": f"panel_{number}", "expr": expression.replace(INTERVAL, "5m")}
        for number, (_, expression) in enumerate(panels())
    ]
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    run(promtool, "check", "rules", str(file))
