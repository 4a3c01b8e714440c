"""A JSON parser that refuses input that other parsers interpret in different ways."""

import json
import math
from typing import Any

from gateway.http.problems import malformed


def parse_json(body: bytes) -> Any:  # noqa: ANN401  any JSON value
    """Parse JSON text (RFC 8259). Raises `ProblemError` with the code MALFORMED_REQUEST.

    Encodings other than UTF-8, repeated names, NaN, infinities and numbers beyond the range
    of a double are refused. A byte order mark is ignored.
    """
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        raise malformed(f"The body is {encoding.upper()}; it must be UTF-8.")
    try:
        text = body.decode(encoding)  # "utf-8-sig" if there is a byte order mark
    except UnicodeDecodeError as error:
        raise malformed(f"The body is not UTF-8 at byte {error.start}.") from None
    if not text or text.isspace():
        raise malformed("The body is empty; it must be a JSON object.")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise malformed(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise malformed("The body is nested too deeply.") from None
    except ValueError as error:
        raise malformed(f"The body is not acceptable JSON: {error}.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {json.dumps(name[:100])} occurs twice in one object")
            seen.add(name)
    return values


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is beyond what a double holds")
    return number


def _integer(text: str) -> int:
    if len(text) > 300 and math.isinf(float(text)):
        raise ValueError("a number is beyond what a double holds")
    return int(text)


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_finite,
    parse_int=_integer,
    parse_constant=_not_a_number,
)
