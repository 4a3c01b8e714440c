"""The formats of times in REST requests."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.problems import Errors
from gateway.transcoding.times import read_time
from public_json.rendering import render_timestamp


def _read(text: object) -> str:
    errors: Errors = []
    timestamp = read_time(text, "start", errors)
    assert timestamp is not None, errors
    assert not errors
    return render_timestamp(timestamp)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-01-31T09:30:00Z", "2026-01-31T09:30:00Z"),
        ("2026-01-31t09:30:00z", "2026-01-31T09:30:00Z"),
        ("2026-01-31 09:30:00Z", "2026-01-31T09:30:00Z"),
        ("2026-01-31T09:30:00+01:30", "2026-01-31T08:00:00Z"),
        ("2026-01-31T09:30:00-00:00", "2026-01-31T09:30:00Z"),
        ("2026-01-31 09:30", "2026-01-31T09:30:00Z"),
        ("2026-01-31 09:30:05", "2026-01-31T09:30:05Z"),
        ("2026-01-31T09:30:00.5Z", "2026-01-31T09:30:00.500Z"),
        ("2026-01-31T09:30:00.000001Z", "2026-01-31T09:30:00.000001Z"),
        ("2026-01-31T09:30:00.123456999Z", "2026-01-31T09:30:00.123456Z"),
        ("1969-12-31T23:59:59.9999999Z", "1969-12-31T23:59:59.999999Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("2024-02-29 00:00", "2024-02-29T00:00:00Z"),
    ],
)
def test_time_is_read(written: str, meant: str) -> None:
    assert _read(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        "2026-01-31",
        "2026-01-31T09:30:00",
        "2026-01-31T09:30Z",
        "2026-01-31T09:30",
        "2026-01-31 09:30:00.5",
        "2026-01-31 09:30:00 02:00",
        "2026-01-31T24:00:00Z",
        "2026-01-31T23:59:60Z",
        "2026-01-31T09:30:00+24:00",
        "2026-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "10000-01-01T00:00:00Z",
        "2026-01-31T09:30:00Z\n",
        " 2026-01-31T09:30:00Z",
        "٢٠٢٦-01-31T09:30:00Z",
        "2026-W05-6T09:30:00Z",
        "20260131T093000Z",
        1769851800,
        True,
        [],
    ],
)
def test_other_text_is_no_time(written: object) -> None:
    errors: Errors = []
    assert read_time(written, "start", errors) is None
    assert [error.field for error in errors] == ["start"]


_OFFSETS = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 3),  # noqa: DTZ001
    max_value=datetime(9999, 12, 29),  # noqa: DTZ001
    timezones=_OFFSETS,
)


@given(_MOMENTS)
def test_every_moment_comes_back(moment: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(moment.astimezone(UTC))
    assert _read(moment.isoformat(timespec="microseconds")) == expected.ToJsonString()
