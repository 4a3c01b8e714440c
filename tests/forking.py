"""Starts programs by forking a process that has imported their modules.

Imports take most of the CPU time of a program's start, and the suite
starts some hundred programs. A forked program runs the same `__main__` with the environment,
arguments, pipes, session and signals of a new process. The programs that all tests share are
new processes, as are those of `make run` and its tests.

`python -m tests.forking` is the process that is forked. It has one thread, and runs nothing of
the programs before the fork.
"""

import ctypes
import fcntl
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module

from local.die_with_parent import PR_SET_PDEATHSIG
from local.programs import PIPE_SIZE, ROOT, Program, die_with_parent
from runtime.program import LISTENING_FD

IMPORTED = ("gateway.app", "service.server", "service.worker", "uvloop")
MOST_BYTES = 65536
PID_BYTES = 4


class ForkServer:
    """The process that is forked."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                die_with_parent(
                    [sys.executable, "-m", "tests.forking"], signal_number=signal.SIGKILL
                ),
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=theirs.fileno(),
            )

    def close(self) -> None:
        """Stop the process. Forked programs that still run get SIGTERM."""
        self._connection.close()
        self._process.wait()

    def program(self, module: str, environment: Mapping[str, str], *arguments: str) -> Program:
        """Start `python -m module`."""
        return _ForkedProgram(self, module, environment, *arguments)

    def fork(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], report: int
    ) -> "_Forked":
        """Return the process, whose standard output and error are pipes.

        `report` is what it gets as LISTENING_FD.
        """
        request = json.dumps([module, arguments, dict(environment)]).encode()
        pipes = [os.pipe() for _ in ("output", "errors", "status")]
        try:
            for _, write in pipes:
                fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            socket.send_fds(self._connection, [request], [*(write for _, write in pipes), report])
        finally:
            for _, write in pipes:
                os.close(write)
        return _Forked(module, *(read for read, _ in pipes))


class _Forked(subprocess.Popen[bytes]):
    """A forked process. The pipe `status` receives its id, then its exit code."""

    def __init__(self, name: str, output: int, errors: int, status: int) -> None:
        self.args = name
        self.stdin = None
        self.stdout = open(output, "rb", buffering=0)  # noqa: SIM115
        self.stderr = open(errors, "rb", buffering=0)  # noqa: SIM115
        self.returncode = None
        self._status = status
        self._reading = threading.Lock()
        weakref.finalize(self, os.close, status)
        # No more than the id: a program that ends at once may have its exit code in the pipe too.
        self.pid = int.from_bytes(os.read(status, PID_BYTES))

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        waiting = select.poll()
        waiting.register(self._status, select.POLLIN)
        if not waiting.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._reading:
            if self.returncode is None:
                # Empty if the forking process was killed, which also killed this one.
                self.returncode = int(os.read(self._status, MOST_BYTES) or -signal.SIGKILL)
        return self.returncode


class _ForkedProgram(Program):
    def __init__(
        self, server: ForkServer, module: str, environment: Mapping[str, str], *arguments: str
    ) -> None:
        self._server = server
        super().__init__(module, environment, *arguments)

    def _spawn(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int | None,
        report: int,
    ) -> subprocess.Popen[bytes]:
        assert stdout == subprocess.PIPE
        return self._server.fork(module, arguments, environment, report)


def main() -> None:
    """Fork for each request, until the connection is closed."""
    for name in IMPORTED:
        import_module(name)
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # By pidfd: the process id, and the pipe for its exit code.
    running: dict[int, tuple[int, int]] = {}
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready != connection.fileno():
                waiting.unregister(ready)
                pid, status = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(status, str(code).encode())
                os.close(status)
                os.close(ready)
                continue
            request, pipes, _, _ = socket.recv_fds(
                connection, MOST_BYTES, 4, socket.MSG_CMSG_CLOEXEC
            )
            if not request:
                return
            output, errors, status, report = pipes
            pid = os.fork()
            if not pid:
                connection.close()
                for end, (_, other) in running.items():
                    os.close(end)
                    os.close(other)
                os.close(status)
                _become(*json.loads(request), output=output, errors=errors, report=report)
                return
            os.close(output)
            os.close(errors)
            os.close(report)
            end = os.pidfd_open(pid)
            running[end] = pid, status
            waiting.register(end, select.POLLIN)
            os.write(status, pid.to_bytes(PID_BYTES))


def _become(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    *,
    output: int,
    errors: int,
    report: int,
) -> None:
    """Run the program to its end in this forked process."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for pipe, standard in ((output, 1), (errors, 2)):
        os.dup2(pipe, standard)
        os.close(pipe)
    os.environ.clear()
    os.environ.update(environment, **{LISTENING_FD: str(report)})
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
