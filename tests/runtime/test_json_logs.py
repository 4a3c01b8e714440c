"""Log lines as JSON: the same text as structlog's own processors make."""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any

import orjson
import pytest
from structlog.processors import JSONRenderer

from local.programs import ROOT
from runtime import logs

REQUEST = {
    "request_id": "0af7651916cd43dd8448eb211c80319c",
    "organization": 'Zürich "3"\n',
    "method": "GetAppointment",
    "status": 200,
    "duration_ms": 12.345,
    "event": "request",
    "level": "info",
}

LOGGING = """
import logging, sys, structlog
from runtime.logs import configure_logs
configure_logs("service", level=sys.argv[1], format="json")
log = structlog.get_logger()
log.info("request", status=200)
log.warning("relay ended", held={1, 1})
try:
    raise ValueError("a reason")
except ValueError:
    log.exception("unexpected error")
logging.getLogger("library").warning("of a library")
"""


def line_at(moment: datetime, event: Mapping[str, object], monkeypatch: pytest.MonkeyPatch) -> str:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return moment.astimezone(tz)

    with monkeypatch.context() as patch:
        patch.setattr(logs, "datetime", Clock)
        return str(logs.json_line(None, "", dict(event)))


@pytest.mark.parametrize("microsecond", [0, 1, 120_000, 999_999])
def test_a_line_is_what_structlogs_processors_make(
    microsecond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime(2030, 1, 1, 8, 5, 9, microsecond, tzinfo=UTC)
    # As `TimeStamper(fmt="iso", utc=True)` writes it.
    stamped = {**REQUEST, "timestamp": moment.isoformat().replace("+00:00", "Z")}
    render = JSONRenderer(serializer=lambda event, **_: orjson.dumps(event).decode())
    assert line_at(moment, REQUEST, monkeypatch) == render(None, "info", stamped)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("info", ["request", "relay ended", "unexpected error"]),
        ("warning", ["relay ended", "unexpected error"]),
        ("error", ["unexpected error"]),
    ],
)
def test_lines_have_level_and_time_from_the_given_level_on(level: str, events: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, level], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    lines = {line["event"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(lines) == {*events, "of a library"}
    for line in lines.values():
        assert datetime.fromisoformat(line["timestamp"]).tzinfo is not None
    assert lines["unexpected error"]["level"] == "error"
    assert lines["unexpected error"]["exception"].endswith("ValueError: a reason")
    assert (lines["of a library"]["level"], lines["of a library"]["logger"]) == (
        "warning",
        "library",
    )
    if "relay ended" in lines:
        assert list(lines["relay ended"]) == ["held", "event", "level", "timestamp"]
        assert lines["relay ended"]["held"] == "{1}"
