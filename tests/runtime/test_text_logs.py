"""Log lines as text, and how they reach a terminal or pipe."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from local.programs import ROOT
from runtime.text_logs import TextRenderer

LOGGING = """
import asyncio, sys
from runtime.logs import configure_logs, lifecycle_logger, request_logger
configure_logs(sys.argv[1], level="info", format="text")
log_request = request_logger()
async def main():
    lifecycle_logger().info("listening")
    for number in range(int(sys.argv[2])):
        log_request({"number": number, "padding": "x" * (number % 400)})
        if number % 30 == 0:
            await asyncio.sleep(0)
asyncio.run(main())
"""


def line(event: Mapping[str, object], *, coloured: bool = False) -> str:
    return str(TextRenderer("service", coloured=coloured)(None, "", dict(event)))


def logging(program: str, lines: int, stdout: int) -> subprocess.Popen[bytes]:
    """A program that logs a number of lines."""
    return subprocess.Popen(
        [sys.executable, "-c", LOGGING, program, str(lines)],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_a_line_has_program_time_event_and_fields() -> None:
    event = {"event": "request", "level": "info", "code": "OK", "duration_ms": 1.5}
    assert re.fullmatch(r"service \d\d:\d\d:\d\d request code=OK duration_ms=1.5", line(event))


def test_what_is_wrong_shows_without_colours_and_a_traceback_follows() -> None:
    event = {"event": "unexpected error", "level": "error", "loop": "a", "exception": "B\nC"}
    first, *others = line(event).split("\n")
    assert first.endswith(" error: unexpected error loop=a")
    assert others == ["B", "C"]


@pytest.mark.parametrize("value", ["two words", "two\nlines", "\x1b[2J", "\x9b2J", "\u202e"])
def test_a_value_cannot_pass_for_anything_else(value: str) -> None:
    shown = line({"event": "request", "organization": value, "code": "OK"})
    assert shown.endswith(f" organization={value!r} code=OK")
    assert shown.isprintable()


def test_a_traceback_cannot_control_the_terminal() -> None:
    shown = line({"event": "failed", "exception": "A\nValueError: \x1b[2J\x9b2J\r\u202e\u2028ü"})
    assert shown.split("\n")[1:] == ["A", r"ValueError: \x1b[2J\x9b2J\r\u202e\u2028ü"]


def test_colours_are_closed_on_each_line() -> None:
    shown = line({"event": "request", "level": "warning", "code": "OK"}, coloured=True)
    assert shown.count("\x1b[0m") == shown.count("\x1b[") / 2 == 4
    assert re.sub(r"\x1b\[\d*m", "", shown).endswith(" warning: request code=OK")


def test_lines_of_programs_that_share_a_pipe_do_not_mix() -> None:
    reading, writing = os.pipe()
    programs = [logging(name, 3000, writing) for name in ("service", "gateway", "worker")]
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        lines = pipe.read().decode().splitlines()
    for program in programs:
        assert program.communicate()[1] == b""
        assert program.returncode == 0
    for name in ("service", "gateway", "worker"):
        own = [each for each in lines if each.startswith(f"{name} ")]
        assert re.fullmatch(rf"{name} \S+ listening", own[0])
        for number, each in enumerate(own[1:]):
            padding = "x" * (number % 400)
            assert re.fullmatch(rf"{name} \S+ request number={number} padding={padding}", each)
        assert len(own) == 3001
    assert len(lines) == 3 * 3001


def test_a_program_ends_well_whose_reader_has_gone() -> None:
    reading, writing = os.pipe()
    program = logging("service", 50_000, writing)
    os.close(writing)
    assert select.select([reading], [], [], 30)[0]
    os.close(reading)
    assert program.communicate(timeout=60)[1] == b""
    assert program.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/full")
def test_where_there_is_no_room_lines_are_lost_and_nothing_fails() -> None:
    with Path("/dev/full").open("wb") as file:
        program = logging("service", 100, file.fileno())
        assert program.communicate(timeout=60)[1] == b""
    assert program.returncode == 0
