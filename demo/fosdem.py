"""Imports a real programme: FOSDEM 2023, 780 talks in 35 rooms, one of them double-booked."""

import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from local.programs import ROOT

PROGRAMME = ROOT / "tests" / "data" / "fosdem-2023.jsonl"
ORGANIZATION = "fosdem-2023"


def load(address: str, organization: str, console: Console) -> bool:
    """Have the client import the programme; return whether all talks but one are stored.

    It has one call at a time, so that the order of the file decides which of two colliding talks
    is stored.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report"
        client = [sys.executable, "-m", "client", "import", str(PROGRAMME), "--in-flight", "1"]
        place = ["--address", address, "--organization", organization]
        files = ["--report", str(report), "--progress", f"{report}.progress"]
        done = subprocess.run(
            [*client, *place, *files], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
        )
        found = report.read_text().splitlines() if report.exists() else []
    console.print(done.stdout.partition("\n")[0], markup=False)
    refused = [json.loads(line) for line in found]
    talks = {talk["id"]: talk for talk in map(json.loads, PROGRAMME.read_text().splitlines())}
    for each in refused:
        console.print(f"\nRefused ({each['code']}):\n  {describe(talks, each['id'])}", markup=False)
        for conflict in each.get("conflicts", []):
            console.print(f"by\n  {describe(talks, conflict['id'])}", markup=False)
    return [each["code"] for each in refused] == ["TIME_RANGE_CONFLICT"] and done.returncode == 1


def describe(talks: dict[str, dict[str, Any]], id: str) -> str:
    """Return title, id, room and local times of a talk; only the id of what is no talk."""
    if (talk := talks.get(id)) is None:
        return id
    start, end = datetime.fromisoformat(talk["start"]), datetime.fromisoformat(talk["end"])
    times = f"{start:%a %d %b %Y %H:%M}-{end:%H:%M} {start:%Z}"
    return f"{talk['title']} (id {id}, room {talk['resourceId']}, {times})"
