"""Opening hours as schema.org writes them: `Mo-Fr 09:00-17:00`, `Sa,Su 22:00-02:00`, `Mo-Su`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from service.availability.ranges import Ranges

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
WEEK = 7 * DAY

_DAYS = ("mo", "tu", "we", "th", "fr", "sa", "su")
_DAY_RANGE = re.compile("([A-Za-z]+)(?:-([A-Za-z]+))?")
_TIME_RANGE = re.compile("([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})")
_SPACED_HYPHEN = re.compile(r"\s*-\s*")
_SEPARATORS = re.compile(r"[\s,]+")


def weekly(texts: Iterable[str]) -> Ranges:
    """Return the open ranges of a week, in microseconds after Monday 00:00 on the local clock.

    Raises ValueError, which says what is wrong in which text.
    """
    opened = [range_ for text in texts for range_ in _read(text)]
    return Ranges.union(([start for start, _ in opened], [end for _, end in opened]))


@lru_cache(maxsize=256)
def _read(text: str) -> Sequence[tuple[int, int]]:
    groups = _SPACED_HYPHEN.sub("-", text).split(";")
    if not any(group.strip() for group in groups):
        raise ValueError("must have days and times, such as Mo-Fr 09:00-17:00")
    return [range_ for group in groups for range_ in _read_group(group)]


def _read_group(group: str) -> Iterator[tuple[int, int]]:
    """Read days, each list of days with its times. Days without times are open all day."""
    days: set[int] = set()
    timed = False
    for part in filter(None, _SEPARATORS.split(group)):
        if part[0].isdigit():
            if not days:
                raise ValueError(
                    f"{part} must follow days, such as Mo-Fr 09:00-17:00; Mo-Su is always open"
                )
            timed = True
            yield from _on(days, *_time_range(part))
            continue
        if timed:
            days, timed = set(), False
        days |= _day_range(part)
    if not timed:
        yield from _on(days, 0, DAY)


def _on(days: Iterable[int], start: int, end: int) -> Iterator[tuple[int, int]]:
    for day in days:
        opens, closes = day * DAY + start, day * DAY + end
        yield opens, min(closes, WEEK)
        if closes > WEEK:  # from Sunday to Monday
            yield 0, closes - WEEK


def _day_range(text: str) -> set[int]:
    match = _DAY_RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text} is neither days such as Mo-Fr nor times such as 09:00-17:00")
    first = _day(match[1])
    last = _day(match[2]) if match[2] else first
    return {(first + number) % 7 for number in range((last - first) % 7 + 1)}


def _day(text: str) -> int:
    try:
        return _DAYS.index(text.lower())
    except ValueError:
        raise ValueError(f"{text} is not a day: Mo, Tu, We, Th, Fr, Sa or Su") from None


def _time_range(text: str) -> tuple[int, int]:
    """Return a range in microseconds after midnight. One past midnight ends after 24 hours."""
    match = _TIME_RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text} must be times such as 09:00-17:00")
    hours = int(match[1]), int(match[3])
    minutes = int(match[2]), int(match[4])
    start, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
    if max(minutes) > 59 or start >= 24 * 60 or end > 24 * 60:
        raise ValueError(f"{text} must have times from 00:00 to 24:00")
    if start == end:
        raise ValueError(f"{text} is empty; all day is 00:00-24:00")
    if end < start:
        end += 24 * 60
    return start * MINUTE, end * MINUTE
