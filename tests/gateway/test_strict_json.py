"""JSON that parsers interpret differently is refused."""

import pytest

from gateway.http.problems import ProblemError
from gateway.transcoding.strict_json import parse_json


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{}x", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}', "not JSON"),
        (b"\xef\xbb\xbf", "empty"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16; it must be UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), "is UTF-16-LE"),
        ('{"a": 1}'.encode("utf-16-be"), "is UTF-16-BE"),
        ('{"a": 1}'.encode("utf-32"), "is UTF-32"),
        (b'{"a": 1, "a": 1}', '"a" occurs twice'),
        (b'{"b": {"a": 1, "\\u0061": 2}}', '"a" occurs twice'),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "beyond"),
        (b'{"a": -' + b"9" * 400 + b"}", "beyond"),
        (b'{"a": ' + b"9" * 5000 + b"}", "beyond"),
        (b'{"a": "\x01"}', "not JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
    ],
)
def test_ambiguous_json_is_malformed(body: bytes, said: str) -> None:
    with pytest.raises(ProblemError) as refusal:
        parse_json(body)
    assert refusal.value.problem.code == "MALFORMED_REQUEST"
    assert said in refusal.value.problem.detail


def test_a_byte_order_mark_is_passed_over() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}


def test_values_keep_their_types() -> None:
    assert parse_json('{"a": [1, 1.5, true, null, "\\ud83d\\ude00é"]}'.encode()) == {
        "a": [1, 1.5, True, None, "😀é"]
    }
