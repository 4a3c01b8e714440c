"""A helper does its work in a process of its own, and never keeps its program from ending."""

import os
import signal
import time
from collections.abc import Iterator
from typing import IO

import psutil
import pytest

import runtime.helper
from runtime.helper import NICENESS, Helper, HelperFailed, serve

MODULE = "tests.runtime.test_helper"


def work(request: bytes) -> bytes:
    """What the helper of these tests does."""
    match request:
        case b"pid":
            return str(os.getpid()).encode()
        case b"nice":
            return str(os.nice(0)).encode()
        case b"print":
            print("this is no answer", flush=True)  # noqa: T201
            return b"printed"
        case b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"fail":
            raise ValueError("of the helper")
    return request * 2


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper(MODULE)
    yield helper
    helper.close()


def test_it_answers_one_request_after_another_from_one_process(helper: Helper) -> None:
    large = os.urandom(5_000_000)
    assert helper.run(large) == large * 2
    assert helper.run(b"") == b""
    assert helper.run(b"pid") == helper.run(b"pid") != str(os.getpid()).encode()


def test_it_has_a_lower_priority(helper: Helper) -> None:
    assert int(helper.run(b"nice")) >= NICENESS


def test_an_error_is_told_and_the_next_request_answered(helper: Helper) -> None:
    with pytest.raises(HelperFailed, match="of the helper"):
        helper.run(b"fail")
    assert helper.run(b"a") == b"aa"


def test_what_it_prints_is_no_answer(helper: Helper) -> None:
    assert helper.run(b"print") == b"printed"
    assert helper.run(b"a") == b"aa"


def test_one_that_was_killed_is_replaced(helper: Helper) -> None:
    os.kill(int(helper.run(b"pid")), signal.SIGKILL)
    assert helper.run(b"a") == b"aa"


def test_a_request_that_kills_it_is_tried_twice_only(helper: Helper) -> None:
    with pytest.raises(HelperFailed, match="ended"):
        helper.run(b"die")
    assert helper.run(b"a") == b"aa"


def test_an_answer_that_could_not_be_read_is_not_that_of_the_next_request(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(pipe: IO[bytes]) -> tuple[bool, bytes]:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(runtime.helper, "_read", out_of_memory)
        with pytest.raises(MemoryError):
            helper.run(b"a")
    assert helper.run(b"b") == b"bb"


def test_it_ends_when_it_is_closed(helper: Helper) -> None:
    pid = int(helper.run(b"pid"))
    helper.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(HelperFailed):
        helper.run(b"a")


def test_it_ends_with_its_program() -> None:
    reading, writing = os.pipe()
    program = os.fork()
    if program == 0:
        os.write(writing, Helper(MODULE).run(b"pid"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with os.fdopen(reading) as told:
        pid = int(told.read())
    os.waitpid(program, 0)
    give_up = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.05)


if __name__ == "__main__":
    serve(work)
