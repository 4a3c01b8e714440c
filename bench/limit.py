"""The limit: pgbench calling the same function, one write a transaction."""

import re
import subprocess
from pathlib import Path

from scripts.postgres import programs_directory

# Every client has a resource of its own, so that no two writes overlap, and counts the
# minutes of it by a random number large enough not to come twice.
SCRIPT = r"""
\set organization random(1, :organizations)
\set minute random(0, 2000000000)
SELECT outcome FROM apply_writes(
    'limit-' || :organizations || '-' || :organization,
    json_build_array(json_build_object(
        'kind', 'UPSERT',
        'id', :client_id || '-' || :minute,
        'resource_id', :client_id || '-' || :minute,
        'start_time', '2030-01-01T00:00:00Z',
        'end_time', '2030-01-01T00:01:00Z',
        'title', '',
        'attributes', '{}'::json,
        'create_only', false,
        'actor', '',
        'validate_only', false
    ))
);
"""


def writes_per_second(
    url: str, directory: Path, *, clients: int, organizations: int, seconds: float
) -> float:
    """Measure how many transactions of one write so many clients make."""
    script = directory / "upsert.sql"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            str(programs_directory() / "pgbench"),
            "--no-vacuum",
            "--protocol=prepared",
            f"--client={clients}",
            f"--jobs={min(clients, 2)}",
            f"--time={seconds:.0f}",
            f"--define=organizations={organizations}",
            f"--file={script}",
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if found is None:
        raise ValueError(f"pgbench did not say how fast it was: {done.stdout}")
    return float(found[1])
