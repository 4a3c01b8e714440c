"""A process of lower priority for work that would stop the event loop of its program.

A thread is not enough: Python runs one at a time, and sorting, encoding or parsing a large value
is one step that no other thread can interrupt.

The programs exchange bytes, each with its length before it. A helper ends when its program does.
"""

import os
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import IO

_HEAD = struct.Struct(">?Q")  # whether it is a result, its length
NICENESS = 10


class HelperFailed(Exception):
    """The helper raised an error, which is the message, or was lost twice."""


class Helper:
    """Runs `python -m module`, which calls `serve`, from the first request on.

    It does one request at a time. `run` blocks, so it is called in a thread.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def run(self, request: bytes) -> bytes:
        """Return what the module's function returns for a request. Raises HelperFailed.

        A helper that was killed is replaced once.
        """
        with self._lock:
            for _ in range(2):
                try:
                    return self._exchange(self._running(), request)
                except (OSError, EOFError):
                    self._end()
                except HelperFailed:
                    raise
                except BaseException:
                    # What is left in the pipe would be the answer to the next request.
                    self._end()
                    raise
        raise HelperFailed(f"{self._module} ended")

    def close(self) -> None:
        """End the helper, after the request in progress."""
        with self._lock:
            self._closed = True
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise HelperFailed(f"{self._module} is closed")
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603  our own module
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the program
            )
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        if process.stdin is None or process.stdout is None:
            raise EOFError
        _write(process.stdin, request, is_result=True)
        is_result, answer = _read(process.stdout)
        if not is_result:
            raise HelperFailed(answer.decode())
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not written is lost with the process
                    pipe.close()
        process.wait()


def serve(function: Callable[[bytes], bytes]) -> None:
    """Apply the function to every request until the program ends. An error is its answer."""
    os.nice(NICENESS)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is printed is no answer
    while True:
        try:
            _, request = _read(requests)
        except EOFError:
            return
        try:
            answer, is_result = function(request), True
        except Exception:  # noqa: BLE001  # the program reports it
            answer, is_result = traceback.format_exc().encode(), False
        _write(answers, answer, is_result=is_result)


def _write(pipe: IO[bytes], content: bytes, *, is_result: bool) -> None:
    pipe.write(_HEAD.pack(is_result, len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[bool, bytes]:
    """Raises EOFError if the other side has ended."""
    is_result, length = _HEAD.unpack(_exactly(pipe, _HEAD.size))
    return is_result, _exactly(pipe, length)


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content
