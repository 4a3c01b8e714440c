"""The programs of the last release, unpacked from `released.tar.xz`.

They run with the packages of this environment, but with their own code, stubs and migrations. The
archive has no type stubs and no vendored scripts; those of this version are taken.
"""

import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from local.programs import PIPE_SIZE, ROOT, Program, die_with_parent
from local.stack import ANY_PORT, base_environment
from runtime.program import LISTENING_FD

ARCHIVE = Path(__file__).with_name("released.tar.xz")
VENDORED = [Path("gateway", "static", name) for name in ("swagger-ui", "daypilot")]


class Release:
    """Programs of a release, by default of the last one. `directory` is where they are unpacked."""

    def __init__(self, directory: Path, *, archive: Path = ARCHIVE) -> None:
        self.directory = directory
        with tarfile.open(archive) as files:
            files.extractall(directory, filter="data")
        for each in VENDORED:
            shutil.copytree(ROOT / each, directory / each)

    def migrate(self, url: str) -> None:
        """Apply the migrations of the release."""
        subprocess.run(
            [sys.executable, "-m", "service.postgres.migration"],
            env=self._environment({"DATABASE_URL": url}),
            cwd=self.directory,
            capture_output=True,
            check=True,
        )

    def program(self, module: str, settings: Mapping[str, str], *arguments: str) -> Program:
        """Start `python -m module` of the release, on free ports."""
        return _ReleasedProgram(self.directory, module, self._environment(settings), *arguments)

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        environment = base_environment()
        programs = Path(sys.executable).parent
        return {
            **environment,
            **ANY_PORT,
            # Before the stubs that are installed.
            "PYTHONPATH": str(self.directory / "protos"),
            "PATH": f"{programs}:{environment['PATH']}",
            **settings,
        }


class _ReleasedProgram(Program):
    def __init__(
        self, directory: Path, module: str, environment: Mapping[str, str], *arguments: str
    ) -> None:
        self._directory = directory
        super().__init__(module, environment, *arguments)

    def _spawn(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | None,
        report: int,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            die_with_parent(
                [sys.executable, "-m", module, *arguments], signal_number=signal.SIGTERM
            ),
            cwd=self._directory,
            env={**environment, "PYTHONUNBUFFERED": "1", LISTENING_FD: str(report)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pipesize=PIPE_SIZE,
            pass_fds=[report],
            start_new_session=True,
        )
