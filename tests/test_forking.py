"""What the tests learn of a forked program is what became of it."""

import os

from tests.forking import PID_BYTES, _Forked


def test_the_exit_code_of_a_program_that_ends_at_once_is_no_part_of_its_id() -> None:
    (output, _), (errors, _), (status, written) = pipes = [os.pipe() for _ in range(3)]
    os.write(written, (4321).to_bytes(PID_BYTES))
    os.write(written, b"1")
    for _, write in pipes:
        os.close(write)
    forked = _Forked("program", output, errors, status)
    assert (forked.pid, forked.wait()) == (4321, 1)
    for pipe in (forked.stdout, forked.stderr):
        assert pipe is not None
        pipe.close()
