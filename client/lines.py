"""Lines of a file, read with bounded memory."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from client.errors import USAGE, CommandError

# The longest line. An appointment has at most a tenth of it.
MAX_LINE = 1024 * 1024

_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield the lines with their numbers, from 1 on; None for a line longer than MAX_LINE.

    A byte order mark of UTF-8 is left out. Raises CommandError if the file is in UTF-16.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            if line.startswith(_OTHER_MARKS):
                raise CommandError("the file is in UTF-16: save it as UTF-8", USAGE)
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) <= MAX_LINE:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield number, None


TOO_LONG = f"the line is longer than {MAX_LINE // 1024} KiB"
