"""Runs the project's programs as child processes, for `make run`, the demo and the tests."""

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
# Seconds between reads of a pipe. Waking up for each line would take half of the CPU time.
READ_INTERVAL = 0.05
# Bytes. Enough for the output of one interval: a program blocks while its pipe is full.
PIPE_SIZE = 512 * 1024
STOP_TIMEOUT = 30.0


class StartError(Exception):
    """Something did not start. The message is one line for the user."""


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
    """A program, such as `python -m service`, and its output.

    It runs in its own session, so that Ctrl-C at the terminal reaches only this process, which
    decides the order of stopping. `environment` is complete: nothing is inherited, so that tests
    do not depend on the developer's shell.

    `stdout` is that of Popen. By default, log lines are read and kept. With None the program
    writes to this process's standard output. Lines on standard error are always kept and passed
    to `on_errors` as they arrive. `on_exit` is called after the end, in another thread.
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
    def ready(self) -> bool:
        """Whether it has reported that it listens."""
        return self._listening is not None

    @property
    def port(self) -> int:
        """The port of its API. Raises StartError before it listens."""
        return int(self._listened()["port"])

    @property
    def metrics_port(self) -> int:
        """The port of its metrics, 0 if it has none. Raises StartError before it listens."""
        return int(self._listened()["metrics_port"] or 0)

    @property
    def address(self) -> str:
        """The target of a gRPC channel."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL for an HTTP client."""
        return f"http://127.0.0.1:{self.port}"

    def log_lines(self) -> list[str]:
        """Return all lines that it has written to stdout and stderr so far."""
        with self._changed:
            return list(self._lines)

    def wait_for_event(
        self, wanted: Callable[[dict[str, Any]], bool], *, within: float = 10.0
    ) -> dict[str, Any]:
        """Wait for a log event that is `wanted`, and return the first one. Raises TimeoutError."""
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
        """Wait until it listens. Raises StartError, with its last error, if it ends instead."""
        with self._report as report:
            ready, _, _ = select.select([report], [], [], within)
            fields = report.read() if ready else b""
        if not ready:
            self.kill()
            raise StartError(f"{self.name} was not ready within {within:g} s")
        if not fields:
            self._reap()
            raise StartError(f"{self.name} did not start: {self.exit_summary()}")
        self._listening = json.loads(fields)
        return self

    def exit_summary(self) -> str:
        """Return the last line on stderr, if any, and the exit code, in one line."""
        with self._changed:
            message = next((line.strip() for line in reversed(self._errors) if line.strip()), "")
        code = self.process.returncode
        end = f"exit code {code}"
        if code is not None and code < 0:
            end = f"killed by {signal.Signals(-code).name}"
        return f"{message} ({end})" if message else end

    def stop(self, within: float = STOP_TIMEOUT) -> int:
        """Stop it with SIGTERM, after `within` seconds with SIGKILL. Returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._reap()

    def kill(self) -> int:
        """Kill it with SIGKILL. Returns the exit code."""
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
        """Read both pipes to their end, stderr in another thread, then wait for the exit."""
        errors = threading.Thread(
            target=self._read_pipe, args=(self.process.stderr, self._add_errors), daemon=True
        )
        errors.start()
        self._read_pipe(self.process.stdout, self._add)
        errors.join()
        self.process.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._on_exit(self)

    def _read_pipe(self, pipe: IO[bytes] | None, add: Callable[[list[str]], None]) -> None:
        """Read a pipe at intervals, and add complete lines."""
        rest = b""
        while pipe and (data := os.read(pipe.fileno(), 65536)):
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                add(lines.decode(errors="replace").split("\n"))
            time.sleep(READ_INTERVAL)
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
