"""Opening hours are read in all forms that are in use, and what is wrong in them is named."""

import pytest

from service.availability.opening_hours import DAY, MINUTE, WEEK, weekly


def minutes(*texts: str) -> list[tuple[int, int]]:
    """The open ranges of a week, in minutes."""
    found = weekly(texts)
    assert all(time % MINUTE == 0 for time in (*found.starts, *found.ends))
    return [
        (start // MINUTE, end // MINUTE)
        for start, end in zip(found.starts, found.ends, strict=True)
    ]


def on(*days: int, start: int = 9 * 60, end: int = 17 * 60) -> list[tuple[int, int]]:
    return [(day * 1440 + start, day * 1440 + end) for day in days]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mo-Fr 09:00-17:00", on(0, 1, 2, 3, 4)),
        ("Mo,We,Fr 08:00-12:00", on(0, 2, 4, start=480, end=720)),
        ("Mo, We ,Fr 9:00 - 17:00", on(0, 2, 4)),
        ("mo-we 09:00-17:00", on(0, 1, 2)),
        ("Sa-Mo 09:00-17:00", on(0, 5, 6)),
        ("Mo-Tu,Fr-Sa 09:00-17:00", on(0, 1, 4, 5)),
        ("Tu 09:00-12:00,13:00-17:00", on(1, end=720) + on(1, start=780)),
        ("Mo 09:00-17:00; Sa 09:00-17:00", on(0, 5)),
        ("Mo 09:00-17:00 Sa 09:00-17:00", on(0, 5)),
        ("Mo 09:00-17:00, Sa 09:00-17:00", on(0, 5)),
        ("Tu", [(1440, 2880)]),
        ("Tu;We 09:00-17:00", [(1440, 2880), *on(2)]),
        ("Mo-Su", [(0, 7 * 1440)]),
        ("Mo-Su 00:00-24:00", [(0, 7 * 1440)]),
        ("Mo 22:00-02:00", [(22 * 60, 26 * 60)]),
        ("Mo 22:00-00:00", [(22 * 60, 24 * 60)]),
        ("Su 22:00-02:00", [(0, 120), (6 * 1440 + 22 * 60, 7 * 1440)]),
        ("Mo-Tu 22:00-24:00;Tu-We 00:00-01:30", [(1320, 1440 + 90), (2760, 2880 + 90)]),
    ],
)
def test_a_text_is_read(text: str, expected: list[tuple[int, int]]) -> None:
    assert minutes(text) == expected


def test_several_texts_are_open_together() -> None:
    assert minutes("Mo 09:00-12:00", "Mo 11:00-17:00", "Sa 09:00-17:00") == on(0, 5)


def test_a_week_has_seven_days() -> None:
    assert WEEK == 7 * DAY


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "must have days"),
        ("  ;", "must have days"),
        ("Mon-Fri 09:00-17:00", "Mon is not a day"),
        ("Mo-Xx 09:00-17:00", "Xx is not a day"),
        ("closed", "closed is not a day"),
        ("09:00-17:00", "09:00-17:00 must follow days, such as Mo-Fr 09:00-17:00"),
        ("24/7", "Mo-Su is always open"),
        ("Mo 9-5", "9-5 must be times"),
        ("Mo 09:00", "09:00 must be times"),
        ("Mo 09:00-17:00-18:00", "must be times"),
        ("Mo 09:60-17:00", "from 00:00 to 24:00"),
        ("Mo 09:00-24:01", "from 00:00 to 24:00"),
        ("Mo 24:00-09:00", "from 00:00 to 24:00"),
        ("Mo 09:00-09:00", "09:00-09:00 is empty; all day is 00:00-24:00"),
        ("Mo-Tu-We 09:00-17:00", "Mo-Tu-We is neither"),
        ("Mo-Fr 09:00-17:00 PH off", "PH is not a day"),
        ("Mo \u0660\u0669:00-17:00", "must be times"),
        ("Mo -17:00", "neither"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        weekly([text])
