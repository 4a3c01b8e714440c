"""How far an import is, in a file beside the imported one, so that it can be continued."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from client.errors import USAGE, CommandError

# Seconds between two writes.
INTERVAL = 1.0

_MEMBERS = {"of", "items", "outcomes", "report"}


class Progress:
    """The number of settled items of a file, and the outcomes so far.

    It belongs to one state of the file and one set of options: with others it starts anew. What
    it has not recorded yet is sent again, and is UNCHANGED.
    """

    def __init__(self, path: Path | None, subject: Mapping[str, Any], *, restart: bool) -> None:
        """Read the file if there is one; without a path nothing is recorded."""
        self._path = path
        self._subject = dict(subject)
        self._written = monotonic()
        self.items = 0
        self.outcomes: Counter[str] = Counter()
        self.report_size = 0
        stored = {} if restart else self._stored()
        if stored.get("of") == self._subject:
            self.items = stored["items"]
            self.outcomes = Counter(stored["outcomes"])
            self.report_size = stored["report"]

    def advance(self, items: int, outcomes: Counter[str]) -> bool:
        """Count, and return whether it is time to save."""
        self.items += items
        self.outcomes += outcomes
        return self._path is not None and monotonic() - self._written >= INTERVAL

    def save(self, report_size: int) -> None:
        """Replace the file. Raises CommandError if it cannot be written."""
        if self._path is None:
            return
        content = {
            "of": self._subject,
            "items": self.items,
            "outcomes": self.outcomes,
            "report": report_size,
        }
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(json.dumps(content))
            os.replace(new, self._path)  # noqa: PTH105  as one step, whatever exists
        except OSError as error:
            raise CommandError(
                f"the progress cannot be stored: {error}; name another file by --progress", USAGE
            ) from error
        self._written = monotonic()

    def remove(self) -> None:
        """Remove the file: everything is settled."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _stored(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            stored = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CommandError(
                f"the progress in {self._path} cannot be read: {error}; begin anew with --restart",
                USAGE,
            ) from error
        if not isinstance(stored, dict) or not stored.keys() >= _MEMBERS:
            raise CommandError(
                f"{self._path} does not contain the progress of an import; name another file by"
                " --progress",
                USAGE,
            )
        return stored
