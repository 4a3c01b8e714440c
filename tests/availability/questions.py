"""Random questions on the days on which clocks change."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from tests.availability.model import OpenOn, Question, Span

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = 24 * 60
# Days of change, in UTC, for each zone.
CHANGES = {
    "Europe/Berlin": ["2026-03-29", "2026-10-25"],
    "America/New_York": ["2026-03-08", "2026-11-01"],
    # By half an hour.
    "Australia/Lord_Howe": ["2026-04-04", "2026-10-03"],
    # It had no 30 December 2011.
    "Pacific/Apia": ["2011-12-30", "2011-09-24"],
    # Midnight did not exist; midnight came twice.
    "America/Sao_Paulo": ["2018-11-04", "2018-02-18"],
    "Asia/Beirut": ["2022-03-26", "2022-10-29"],
    # Five hours and three quarters, without changes.
    "Asia/Kathmandu": ["2026-03-29"],
    "UTC": ["2026-03-29"],
}


@st.composite
def opening_hours(draw: st.DrawFn) -> OpenOn:
    start = draw(st.integers(0, DAY // 15 - 1)) * 15
    end = draw(st.integers(0, DAY // 15).filter(lambda quarter: quarter * 15 != start)) * 15
    return OpenOn(draw(st.frozensets(st.integers(0, 6), min_size=1)), start, end)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    zone = draw(st.sampled_from(list(CHANGES)))
    day = datetime.fromisoformat(draw(st.sampled_from(CHANGES[zone]))).replace(tzinfo=UTC)
    middle = (day - EPOCH) // timedelta(minutes=1)
    start = middle + draw(st.integers(-DAY, DAY // 2))
    return Question(
        start=start,
        end=start + draw(st.integers(1, 3 * DAY)),
        zone=zone,
        together=draw(st.booleans()),
        duration=draw(st.none() | st.sampled_from([1, 15, 30, 45, 60, 90, 600])),
        granularity=draw(st.none() | st.sampled_from([1, 7, 15, 20, 30, 60, 100, 420, 1440])),
        opening_hours=tuple(draw(st.lists(opening_hours(), max_size=3))),
        buffer_before=draw(st.sampled_from([0, 0, 5, 30, 120])),
        buffer_after=draw(st.sampled_from([0, 0, 10, 45, 1000])),
    )


@st.composite
def calendars(draw: st.DrawFn, question: Question) -> list[list[Span]]:
    """The appointments of one to three resources, which do not overlap inside a resource."""
    return [
        _laid_out(question, draw(st.lists(st.tuples(_gap, _length), max_size=12)))
        for _ in range(draw(st.integers(1, 3)))
    ]


_gap = st.sampled_from([0, 0, 5, 15, 30, 60, 121, 700])
_length = st.sampled_from([1, 15, 30, 60, 90, 1500])


def _laid_out(question: Question, pieces: list[tuple[int, int]]) -> list[Span]:
    """Put appointments one after another, each after a gap, from before the question's start."""
    spans = []
    time = question.start - 200
    for gap, length in pieces:
        spans.append((time + gap, time + gap + length))
        time += gap + length
    return spans
