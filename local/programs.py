"""Our programs as child processes, for `make run`, the demo and the tests."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from runtime.program import LISTENING_FD

ROOT = Path(__file__).resolve().parent.parent

START_TIMEOUT = 60.0
# Seconds in which lines gather: to be woken for each would take half the processors' time.
READING_INTERVAL = 0.05
# Bytes for what comes until they are read: a program that finds no room answers nobody.
PIPE_SIZE = 512 * 1024
STOP_TIMEOUT = 30.0


class StartError(Exception):
    """Something did not start; the message is the one line that the user needs."""


def die_with_parent(
    command: list[str], *, signal_number: signal.Signals, user: str = ""
) -> list[str]:
    """Return the command wrapped so that it gets a signal when this process dies.

    See die_with_parent.py.
    """
    wrapper = str(Path(__file__).with_name("die_with_parent.py"))
    arguments = [str(int(signal_number)), str(os.getpid()), user]
    return [sys.executable, "-I", "-S", wrapper, *arguments, *command]


class Program:
    """`python -m service`, say, and the log lines it has written.

    It runs in a session of its own, so a Ctrl-C at the terminal reaches only this
    process, which decides what stops first. Give it a whole environment: nothing is
    inherited, so that a test does not depend on the developer's shell.

    `stdout` is as for Popen. By default log lines are read and kept here; with None the program
    writes to this process's standard output, with a descriptor to that. What it writes to
    standard error is always kept, and passed to `on_errors` as it comes.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        *arguments: str,
        stdout: int | None = subprocess.PIPE,
        on_errors: Callable[[list[str]], object] = lambda _: None,
        on_exit: Callable[["Program"], object] = lambda _: None,
    ) -> None:
        self.name = arguments[0] if arguments else module
        self._on_errors = on_errors
        self._on_exit = on_exit
        self._changed = threading.Condition()
        self._lines: list[str] = []
        self._errors: deque[str] = deque(maxlen=100)
        self._listening: dict[str, Any] | None = None
        self._ended = False
        reading, writing = os.pipe()
        self._report = os.fdopen(reading, "rb")
        try:
            self.process = self._spawn(module, arguments, environment, stdout, writing)
        finally:
            os.close(writing)
        self._reader = threading.Thread(target=self._read, name=f"{self.name}-output", daemon=True)
        self._reader.start()

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
            cwd=ROOT,
            env={**environment, "PYTHONUNBUFFERED": "1", LISTENING_FD: str(report)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pipesize=PIPE_SIZE,
            pass_fds=[report],
            start_new_session=True,
        )

    @property
    def port(self) -> int:
        """The port it serves."""
        return int(self._listened()["port"])

    @property
    def metrics_port(self) -> int:
        """The port of its metrics; 0 if it serves none."""
        return int(self._listened()["metrics_port"] or 0)

    @property
    def address(self) -> str:
        """What a gRPC channel takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """What an HTTP client takes."""
        return f"http://127.0.0.1:{self.port}"

    def log_lines(self) -> list[str]:
        """Everything it has written to stdout and stderr so far."""
        with self._changed:
            return list(self._lines)

    def wait_for_event(
        self, wanted: Callable[[dict[str, Any]], bool], *, within: float = 10.0
    ) -> dict[str, Any]:
        """The first logged event that is wanted, waited for. TimeoutError if none comes."""
        found: dict[str, Any] | None = None
        seen = 0

        def search() -> bool:
            nonlocal found, seen
            while found is None and seen < len(self._lines):
                event = _as_event(self._lines[seen])
                seen += 1
                if event is not None and wanted(event):
                    found = event
            return found is not None or self._ended

        with self._changed:
            self._changed.wait_for(search, within)
        if found is None:
            raise TimeoutError(f"{self.name} logged no such event within {within:g} s")
        return found

    def wait_until_listening(self, within: float = START_TIMEOUT) -> Self:
        """Return when it serves; StartError with its own last words if it ends instead."""
        with self._report as report:
            ready, _, _ = select.select([report], [], [], within)
            fields = report.read() if ready else b""
        if not ready:
            self.kill()
            raise StartError(f"{self.name} was not ready within {within:g} s")
        if not fields:
            self._reap()
            raise StartError(f"{self.name} did not start: {self.last_words()}")
        self._listening = json.loads(fields)
        return self

    def last_words(self) -> str:
        """One line on how it ended: its last line on stderr, if any, and its exit code."""
        with self._changed:
            words = next((line.strip() for line in reversed(self._errors) if line.strip()), "")
        code = self.process.returncode
        end = f"exit code {code}"
        if code is not None and code < 0:
            end = f"killed by {signal.Signals(-code).name}"
        return f"{words} ({end})".strip()

    def stop(self, within: float = STOP_TIMEOUT) -> int:
        """Ask it to end (SIGTERM), insist (SIGKILL) if it does not, return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._reap()

    def kill(self) -> int:
        """End it at once (SIGKILL)."""
        if self.process.poll() is None:
            self.process.kill()
        return self._reap()

    def _reap(self) -> int:
        self._report.close()
        code = self.process.wait()
        if self._reader is not threading.current_thread():
            self._reader.join(timeout=5)
        return code

    def _listened(self) -> dict[str, Any]:
        if self._listening is None:
            raise StartError(f"{self.name} is not listening yet")
        return self._listening

    def _read(self) -> None:
        """Both pipes to their end, stderr in a thread beside, then the exit code."""
        beside = threading.Thread(
            target=self._read_pipe, args=(self.process.stderr, self._add_errors), daemon=True
        )
        beside.start()
        self._read_pipe(self.process.stdout, self._add)
        beside.join()
        self.process.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._on_exit(self)

    def _read_pipe(self, pipe: IO[bytes] | None, add: Callable[[list[str]], None]) -> None:
        """Take what has come together. The pipe has room for what comes meanwhile."""
        rest = b""
        while pipe and (data := os.read(pipe.fileno(), 65536)):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                add(whole.decode(errors="replace").split("\n"))
            time.sleep(READING_INTERVAL)
        if rest:
            add([rest.decode(errors="replace")])

    def _add(self, lines: list[str]) -> None:
        with self._changed:
            self._lines.extend(lines)
            self._changed.notify_all()

    def _add_errors(self, lines: list[str]) -> None:
        with self._changed:
            self._errors.extend(lines)
        self._add(lines)
        self._on_errors(lines)


def _as_event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
