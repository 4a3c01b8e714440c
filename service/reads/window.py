"""The filter of a list."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The filter of a list: appointments that intersect `[start, end)`.

    If start and end are equal, appointments that run at that time.
    """

    resource_id: str | None
    start: datetime | None
    end: datetime | None
    include_cancelled: bool

    @property
    def before_end(self) -> LiteralString:
        """The condition on a start, if the window has an end."""
        return "<= %(window_end)s" if self.start == self.end else "< %(window_end)s"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the queries."""
        return {
            "resource_id": self.resource_id,
            "window_start": self.start,
            "window_end": self.end,
        }
