"""Entity tags, read from headers (RFC 9110, 8.8.3 and 13.1)."""

import pytest

from gateway.http.conditions import MAX_TAGS, EntityTags, expected_etags, read_tags
from gateway.http.problems import ProblemError


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (["*"], EntityTags(any=True)),
        ([" * "], EntityTags(any=True)),
        (['"2"'], EntityTags(strong=("2",))),
        (['"2", "x"'], EntityTags(strong=("2", "x"))),
        (['"2"', '"x"'], EntityTags(strong=("2", "x"))),
        (['"2","2"'], EntityTags(strong=("2",))),
        (['W/"2"'], EntityTags(weak=("2",))),
        ([',W/"2" ,\t"x",'], EntityTags(strong=("x",), weak=("2",))),
        (['"a,b", "W/c"'], EntityTags(strong=("a,b", "W/c"))),
        (['"é"'], EntityTags(strong=("é",))),
        (['""'], EntityTags(strong=("",))),
    ],
)
def test_tags(values: list[str], tags: EntityTags) -> None:
    assert read_tags(values) == tags


@pytest.mark.parametrize(
    "value",
    ["", ",", "2", '"2', '2"', '"2" "3"', '"2" x', '*, "2"', 'w/"2"', 'W/ "2"', " " * 8000 + "x"],
)
def test_what_is_no_list_of_tags(value: str) -> None:
    with pytest.raises(ValueError, match="entity tags in double quotes"):
        read_tags([value])


def test_comparison() -> None:
    tags = read_tags(['"2", W/"3"'])
    assert [tags.match_strongly(etag) for etag in ("2", "3", "4")] == [True, False, False]
    assert [tags.match_weakly(etag) for etag in ("2", "3", "4")] == [True, True, False]
    assert read_tags(["*"]).match_strongly("2")


@pytest.mark.parametrize(
    ("header", "body_etag", "expected"),
    [
        ("*", "", ["*"]),
        ("*", "2", ["2"]),
        ('"2", W/"3", "*", "", "é", "4"', "", ["2", "4"]),
        ('"2", "3"', "3", ["3"]),
        ('"2", "3"', "4", ["2", "3"]),  # the service says that they differ
    ],
)
def test_the_etags_of_a_write(header: str, body_etag: str, expected: list[str]) -> None:
    assert list(expected_etags(read_tags([header]), body_etag)) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [('W/"2"', "weak"), ('"*"', "No appointment"), (f'"{"x" * 65}"', "No appointment")],
)
def test_tags_that_nothing_has(header: str, expected: str) -> None:
    with pytest.raises(ProblemError, match=expected) as refused:
        expected_etags(read_tags([header]), "2")
    assert refused.value.problem.status == 412


def test_the_tags_of_a_write_have_a_limit() -> None:
    many = ", ".join(f'"{number}"' for number in range(MAX_TAGS + 1))
    assert len(expected_etags(read_tags([many.rpartition(",")[0]]), "")) == MAX_TAGS
    with pytest.raises(ProblemError, match="at most"):
        expected_etags(read_tags([many]), "")
