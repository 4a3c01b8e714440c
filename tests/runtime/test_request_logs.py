"""Lines of requests: the same as structlog makes, in order, written together, and none lost."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from tempfile import TemporaryFile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.programs import ROOT
from runtime.logs import configure_logs, request_logger

PROGRAM = """
import asyncio, contextlib, logging, os, signal, sys, threading, structlog
from runtime.logs import configure_logs, lifecycle_logger, request_logger
from runtime.program import run_until_stopped
configure_logs("service", level="info", format="json")
log = structlog.get_logger()
log_request = request_logger()
def requests(first, last):
    for number in range(first, last):
        log_request({"number": number, "padding": "x" * (number % 400)})
"""
PAUSE = 0.3  # seconds in which a program would have gone on, if it could
WITHIN = 30

TIME = {"json": r'"timestamp":"[0-9T:.-]+Z"', "text": r"^x \d\d:\d\d:\d\d"}

names = st.text("aé_", min_size=1, max_size=9)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.lists(st.text(), max_size=2),
    st.frozensets(st.integers(), max_size=1),  # JSON has none
)


def check_lines(format: str) -> None:
    """Compare lines of requests with those of structlog, for the same fields."""
    with TemporaryFile("w+", newline="\n") as output:
        with redirect_stdout(output):
            configure_logs("x", level="info", format=format)
        import structlog  # noqa: PLC0415  configured now

        log, log_request = structlog.get_logger(), request_logger()
        assert log_request is not None

        @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(names, values, max_size=8))
        def check(fields: Mapping[str, object]) -> None:
            os.ftruncate(output.fileno(), 0)
            os.lseek(output.fileno(), 0, os.SEEK_SET)
            log.info("request", **fields)
            log_request(dict(fields))
            written = os.pread(output.fileno(), 1_000_000, 0).decode()
            assert written.endswith("\n")
            chain, direct = written[:-1].split("\n")
            stamp = TIME[format]
            assert len(re.findall(stamp, direct)) == 1
            assert re.sub(stamp, "", direct) == re.sub(stamp, "", chain)

        check()


@contextmanager
def running(
    code: str, stdout: int = subprocess.PIPE, *, prelude: str = PROGRAM
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + code], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(code: str, *, exit_code: int = 0) -> list[dict[str, object]]:
    """Run a program, and return its lines."""
    with running(code) as process:
        output, errors = process.communicate(timeout=WITHIN)
    assert process.returncode == exit_code, errors
    assert output.endswith(b"\n")
    return [json.loads(line) for line in output.splitlines()]


def what(lines: list[dict[str, object]]) -> list[object]:
    """Return the numbers of requests, and the other events."""
    return [line.get("number", line["event"]) for line in lines]


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_line_is_what_structlog_makes_of_the_same_fields(format: str) -> None:
    code = f"from tests.runtime.test_request_logs import check_lines; check_lines({format!r})"
    with running(code, prelude="") as process:
        _, errors = process.communicate(timeout=WITHIN)
    assert process.returncode == 0, errors.decode()


@pytest.mark.parametrize("level", ["warning", "error"])
def test_without_level_info_requests_are_not_logged(level: str) -> None:
    prelude = PROGRAM.replace('level="info"', f'level="{level}"')
    with running("print(log_request)", prelude=prelude) as process:
        assert process.communicate(timeout=WITHIN) == (b"None\n", b"")


def test_lines_of_requests_and_others_keep_their_order() -> None:
    lines = said("""
async def main():
    for start in range(0, 100, 10):
        requests(start, start + 5)
        log.warning("a warning")
        requests(start + 5, start + 10)
        logging.getLogger("library").warning("of a library")
        if start % 20 == 0:
            await asyncio.sleep(0)
    requests(100, 103)
    lifecycle_logger().info("stopped")
asyncio.run(main())
""")
    expected: list[object] = []
    for start in range(0, 100, 10):
        expected += [*range(start, start + 5), "a warning"]
        expected += [*range(start + 5, start + 10), "of a library"]
    assert what(lines) == [*expected, 100, 101, 102, "stopped"]


@pytest.mark.parametrize(
    ("end", "exit_code"), [("pass", 0), ("sys.exit(3)", 3), ("raise ValueError", 1)]
)
def test_no_line_is_lost_at_the_end(end: str, exit_code: int) -> None:
    code = f"""
async def main():
    requests(0, 50)
    {end}
asyncio.run(main())
"""
    assert what(said(code, exit_code=exit_code)) == list(range(50))


def test_no_line_is_lost_at_sigterm() -> None:
    lines = said("""
@contextlib.asynccontextmanager
async def program():
    requests(0, 2)
    asyncio.get_running_loop().call_later(0.1, under_way)
    yield None
    requests(4, 6)
def under_way():
    requests(2, 4)
    os.kill(os.getpid(), signal.SIGTERM)
asyncio.run(run_until_stopped(program(), lambda _: {}))
requests(6, 8)
""")
    assert what(lines) == [0, 1, "listening", 2, 3, "stopping", 4, 5, "stopped", 6, 7]


def test_a_line_waits_a_few_milliseconds_for_others() -> None:
    code = """
async def main():
    while True:
        requests(0, 1)
        await asyncio.sleep(3600)
asyncio.run(main())
"""
    with running(code) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], WITHIN)[0]
        assert json.loads(process.stdout.readline())["number"] == 0


def test_what_came_before_another_line_survives_sigkill() -> None:
    code = """
async def main():
    requests(0, 3)
    log.error("the last")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    assert what(said(code, exit_code=-signal.SIGKILL)) == [0, 1, 2, "the last"]


def test_a_write_has_many_whole_lines_and_no_more_than_a_pipe_takes_at_once() -> None:
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = """
async def main():
    for number in range(200):
        requests(number, number + 1)
        await asyncio.sleep(0)
asyncio.run(main())
"""
    writes = []
    with reading, running(code, writing.fileno()), writing:
        writing.close()
        while data := reading.recv(1_000_000):
            writes.append(data)
    assert all(data.endswith(b"\n") and len(data) <= select.PIPE_BUF for data in writes)
    assert [json.loads(line)["number"] for line in b"".join(writes).splitlines()] == [*range(200)]
    assert len(writes) < 100


def test_a_slow_reader_gets_every_line() -> None:
    code = """
async def main():
    requests(0, 5000)
asyncio.run(main())
"""
    with running(code) as process:
        time.sleep(PAUSE)
        assert process.poll() is None  # it waits for the reader
        output, errors = process.communicate(timeout=WITHIN)
    assert (process.returncode, errors) == (0, b"")
    assert [json.loads(line)["number"] for line in output.splitlines()] == [*range(5000)]


def test_a_pipe_that_is_full_and_does_not_block_costs_lines_and_no_request() -> None:
    code = """
os.set_blocking(1, False)
async def main():
    requests(0, 5000)
    sys.stderr.write("alive")
asyncio.run(main())
"""
    with running(code) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"alive"
        assert process.wait(WITHIN) == 0
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert [json.loads(line)["number"] for line in lines[:100]] == [*range(100)]
    assert len(lines) < 5000


def test_what_an_object_logs_at_its_end_does_not_come_into_a_line() -> None:
    # Garbage can be collected at any time, and asyncio logs what is wrong with its objects then.
    lines = said("""
write = os.write
def collecting(descriptor, data):
    os.write = write
    log.warning("at its end")
    return write(descriptor, data)
async def main():
    requests(0, 3)
    os.write = collecting
    log.warning("outer")
    requests(3, 5)
asyncio.run(main())
""")
    assert what(lines) == [0, 1, 2, "outer", "at its end", 3, 4]


def test_lines_of_other_threads_are_whole_and_none_is_lost() -> None:
    lines = said("""
def work(name):
    for number in range(1000):
        log.warning(name, of=number)
        logging.getLogger(name).warning(name)
async def main():
    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for number in range(0, 3000, 10):
        requests(number, number + 10)
        await asyncio.sleep(0)
    for thread in threads:
        thread.join()
sys.setswitchinterval(1e-5)
asyncio.run(main())
""")
    assert [line["number"] for line in lines if "number" in line] == [*range(3000)]
    for name in "abc":
        assert [line["of"] for line in lines if "of" in line and line["event"] == name] == [
            *range(1000)
        ]
        assert sum(line.get("logger") == name for line in lines) == 1000
