"""Parses the times in REST requests."""

import re
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.http.problems import Errors, FieldError

_TIME = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?P<separator>[Tt ])"
    r"(?P<minute>(?:[01][0-9]|2[0-3]):[0-5][0-9])"
    r"(?:(?P<second>:[0-5][0-9])(?P<fraction>\.[0-9]+)?)?"
    r"(?P<offset>[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z


def read_time(value: Any, path: str, errors: Errors) -> Timestamp | None:  # noqa: ANN401
    """Parse RFC 3339 with an offset, or `YYYY-MM-DD HH:MM[:SS]` in UTC.

    Truncates to microseconds. Appends an error and returns None if the time is invalid.
    """
    match = _TIME.fullmatch(value) if type(value) is str else None
    if match is None or not _known_form(match):
        errors.append(
            FieldError(
                path,
                "must be a time such as 2026-01-31T09:30:00Z, 2026-01-31T10:30:00+01:00 "
                "or 2026-01-31 09:30, which is read as UTC",
            )
        )
        return None
    fraction = (match["fraction"] or "")[:7]
    try:
        moment = datetime.fromisoformat(
            f"{match['date']}T{match['minute']}{match['second'] or ':00'}"
            f"{(match['offset'] or 'Z').upper()}"
        )
    except ValueError:
        errors.append(FieldError(path, "must be a day that exists, in the years 1 to 9999"))
        return None
    # A conversion to UTC could overflow; a subtraction cannot.
    since = moment - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        errors.append(FieldError(path, "must be in the years 1 to 9999, in UTC"))
        return None
    return Timestamp(seconds=seconds, nanos=int(fraction[1:].ljust(6, "0")) * 1000)


def _known_form(time: re.Match[str]) -> bool:
    if time["offset"]:
        return time["second"] is not None
    return time["separator"] == " " and time["fraction"] is None
