"""What was not imported: each in a line of a file, and the first ones on the terminal."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from client.entries import Entry, Skipped
from client.errors import USAGE, CommandError, Fault
from client.json_lines import time_text

SHOWN = 20


class Report:
    """Collects refusals and what could not be read.

    The file is made with the first line. One that is there keeps its first `keep` bytes, which an
    import that continues has written before.
    """

    def __init__(self, path: Path, console: Console, *, keep: int = 0) -> None:
        self.path = path
        self._console = console
        self._shown = 0
        self._file: TextIO | None = None
        if path.is_file():
            with _writing():
                os.truncate(path, min(keep, path.stat().st_size))

    @property
    def size(self) -> int:
        """The number of bytes so far, all of which are in the file."""
        if self._file is not None:
            self._file.flush()
        return self.path.stat().st_size if self.path.is_file() else 0

    def skipped(self, item: Skipped) -> None:
        """Note what was not sent. Only what cannot be read is shown: the rest is no fault."""
        self._write({"line": item.line, "id": item.id, "code": item.kind, "detail": item.detail})
        if item.kind == "UNREADABLE":
            self._show(f"line {item.line}: {item.detail}")

    def refused(self, entry: Entry, fault: Fault) -> None:
        """Note what the service refused."""
        conflicts = [
            {
                "id": conflict.id,
                "start": time_text(conflict.start),
                "end": time_text(conflict.end),
                "resourceIds": list(conflict.resource_ids),
            }
            for conflict in fault.conflicts
        ]
        content: dict[str, Any] = {
            "line": entry.line,
            "id": entry.appointment.id,
            "code": fault.reason,
            "detail": fault.detail,
        }
        if conflicts:
            content |= {"conflicts": conflicts, "moreConflicts": fault.more_conflicts}
        self._write(content)
        by = "".join(
            f"; {conflict['id']} has {conflict['start']} to {conflict['end']}"
            for conflict in conflicts[:1]
        )
        self._show(f"line {entry.line}, id {entry.appointment.id}: {fault.detail}{by}")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _show(self, text: str) -> None:
        self._shown += 1
        if self._shown <= SHOWN:
            self._console.print(text, style="yellow", markup=False)
        elif self._shown == SHOWN + 1:
            self._console.print(f"... the others are in {self.path}", style="yellow", markup=False)

    def _write(self, content: dict[str, Any]) -> None:
        with _writing():
            # Half of a surrogate pair is written as a question mark.
            self._file = self._file or self.path.open("a", encoding="utf-8", errors="replace")
            self._file.write(json.dumps(content, ensure_ascii=False) + "\n")


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandError(
            f"the report cannot be written: {error}; name another file by --report", USAGE
        ) from error
