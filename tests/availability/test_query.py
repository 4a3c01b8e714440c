"""Availability equals that of a model which looks at every minute by itself."""

from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from service.availability.opening_hours import MINUTE, SECOND, weekly
from service.availability.query import Answer, Availability, AvailabilityQuery
from service.availability.ranges import Ranges
from tests.availability import model
from tests.availability.model import Found, OpenOn, Question, Span
from tests.availability.questions import calendars, questions


def query_of(question: Question) -> AvailabilityQuery:
    duration = question.duration or question.granularity or 0
    return AvailabilityQuery(
        start=question.start * MINUTE,
        end=question.end * MINUTE,
        together=question.together,
        duration=duration * MINUTE,
        granularity=question.granularity and question.granularity * MINUTE,
        opening_hours=weekly(hours.text() for hours in question.opening_hours)
        if question.opening_hours
        else None,
        zone=ZoneInfo(question.zone),
        buffer_before=question.buffer_before * MINUTE,
        buffer_after=question.buffer_after * MINUTE,
    )


def ranges_of(spans: list[Span]) -> Ranges:
    return Ranges.union(
        ([start * MINUTE for start, _ in spans], [end * MINUTE for _, end in spans])
    )


def times_of(answer: Answer, found: Availability) -> list[int]:
    return [time for first, end in found.starts for time in answer.candidates[first:end]]


def in_minutes(answer: Answer) -> list[Found]:
    """Return what was found, in minutes."""

    def minutes(ranges: Ranges) -> list[Span]:
        pairs = zip(ranges.starts, ranges.ends, strict=True)
        return [(_minutes(start), _minutes(end)) for start, end in pairs]

    return [
        Found(minutes(each.busy), minutes(each.free), list(map(_minutes, times_of(answer, each))))
        for each in answer.found
    ]


def _minutes(time: int) -> int:
    minutes, rest = divmod(time, MINUTE)
    assert rest == 0
    return minutes


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_every_minute_and_every_offer_is_as_in_the_model(data: st.DataObject) -> None:
    question = data.draw(questions())
    calendar = data.draw(calendars(question))

    answer = query_of(question).answer(
        {f"r{number}": ranges_of(spans) for number, spans in enumerate(calendar)}
    )

    expected, expected_more = model.answer(question, calendar)
    assert in_minutes(answer) == expected
    assert answer.more_starts == expected_more
    assert [each.resource_id for each in answer.found] == (
        [None] if question.together else [f"r{number}" for number in range(len(calendar))]
    )


def test_the_earliest_starts_of_all_resources_are_given() -> None:
    question = Question(start=0, end=700, zone="UTC", duration=60, granularity=1)
    calendar: list[list[Span]] = [[], [(10, 90)]]

    answer = query_of(question).answer(
        {str(number): ranges_of(spans) for number, spans in enumerate(calendar)}
    )

    expected, _ = model.answer(question, calendar)
    assert in_minutes(answer) == expected
    first, second = (times_of(answer, each) for each in answer.found)
    assert second[-1] - first[-1] in {0, -MINUTE}
    assert len(first) + len(second) == 1000
    assert answer.more_starts


def test_ranges_keep_microseconds() -> None:
    query = query_of(Question(start=0, end=1, zone="UTC"))

    [found] = query.answer({"": Ranges([1, 2 * SECOND], [SECOND, 2 * SECOND + 1])}).found

    assert (found.busy.starts, found.busy.ends) == ([1, 2 * SECOND], [SECOND, 2 * SECOND + 1])
    assert (found.free.starts, found.free.ends) == (
        [0, SECOND, 2 * SECOND + 1],
        [1, 2 * SECOND, 60 * SECOND],
    )


def test_the_first_and_the_last_day_of_the_calendar_can_be_asked_for() -> None:
    first, last = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND
    for start in (first, last - 60 * MINUTE):
        query = AvailabilityQuery(
            start=start,
            end=start + 60 * MINUTE,
            together=False,
            duration=30 * MINUTE,
            granularity=15 * MINUTE,
            opening_hours=weekly(["Mo-Su"]),
            zone=ZoneInfo("UTC"),
            buffer_before=30 * MINUTE,
            buffer_after=0,
        )

        answer = query.answer({"": Ranges()})

        assert times_of(answer, *answer.found) == [start, start + 15 * MINUTE, start + 30 * MINUTE]
        assert not answer.more_starts


def test_what_the_clock_shows_twice_is_open_twice_and_starts_twice() -> None:
    # The clocks of Berlin show 02:00 to 03:00 twice on 25 October 2026: at 00:00 and 01:00 UTC.
    start = 1_792_879_200 // 60  # 2026-10-24T22:00Z
    question = Question(
        start=start,
        end=start + 6 * 60,
        zone="Europe/Berlin",
        granularity=30,
        opening_hours=(OpenOn(frozenset({6}), 120, 150),),
    )

    [found] = in_minutes(query_of(question).answer({"": Ranges()}))

    assert found.free == [(start + 120, start + 150), (start + 180, start + 210)]
    assert found.starts == [start + 120, start + 180]
