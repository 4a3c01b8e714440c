"""Commands of the service, as operators run them."""

import subprocess
import sys

from local.programs import ROOT
from local.stack import base_environment


def run_command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` with arguments on a database to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env={**base_environment(), "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
