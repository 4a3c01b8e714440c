"""Log lines for people: program, time, event, and its fields as name=value."""

import time
from functools import cache

from structlog.typing import EventDict

# Select Graphic Rendition of ECMA-48, as terminals have it.
BOLD, DIM, RED, YELLOW, BLUE, MAGENTA, CYAN = "1", "2", "31", "33", "34", "35", "36"
PROGRAMS = {"service": CYAN, "worker": BLUE, "gateway": MAGENTA}
LEVELS = {"debug": DIM, "info": BOLD, "warning": YELLOW, "error": RED, "critical": RED}
QUIET_LEVELS = frozenset({"debug", "info"})


class TextRenderer:
    """Makes lines of events; the last processor of structlog's chain.

    Times are the machine's own, without the date. An exception follows on lines of its own.
    """

    def __init__(self, program: str, *, coloured: bool) -> None:
        self._coloured = coloured
        self._program = self._styled(program, PROGRAMS.get(program, BOLD))
        self._name = cache(lambda name: f" {self._styled(f'{name}=', DIM)}")
        self._second = 0
        self._time = ""

    def __call__(self, _: object, __: str, event: EventDict) -> str:
        level = event.pop("level", "info")
        what = str(event.pop("event"))
        if level not in QUIET_LEVELS:
            what = f"{level}: {what}"
        exception = event.pop("exception", None)
        fields = [self._name(name) + _printable(value) for name, value in event.items()]
        what = self._styled(what, LEVELS.get(level, BOLD))
        line = f"{self._program} {self._now()} {what}{''.join(fields)}"
        return f"{line}\n{_printable_lines(str(exception))}" if exception else line

    def _now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._time = self._styled(time.strftime("%H:%M:%S", time.localtime(second)), DIM)
        return self._time

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._coloured else text


def _printable_lines(text: str) -> str:
    """Return text without what would control the terminal, apart from line breaks."""
    return "".join(
        each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text
    )


def _printable(value: object) -> str:
    """Return a value on one line, and without what would control the terminal."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
