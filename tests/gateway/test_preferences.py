"""The header `Prefer` (RFC 7240)."""

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.endpoints.submission import Preferences, read_preferences


def _read(*values: str) -> Preferences:
    headers = CIMultiDict([("Prefer", value) for value in values])
    return read_preferences(make_mocked_request("POST", "/", headers))


@pytest.mark.parametrize(
    ("values", "respond_async", "wait"),
    [
        (["respond-async"], True, 0),
        (["Respond-Async; foo=bar , wait=5"], True, 5),
        (["a=b", "respond-async"], True, 0),
        ([",, respond-async,"], True, 0),
        (['respond-async, wait = "5"'], True, 5),
        (['wait="1\\2"'], False, 12),
        (["wait=1, wait=2"], False, 1),
        (["wait=99"], False, 20),
        (["wait=-1"], False, 0),
        (['foo="bar, respond-async"'], False, 0),
        (['foo="a\\", respond-async, \\"b", wait=3'], False, 3),
        (['foo;bar="x, respond-async", wait=3'], False, 3),
        (['foo="bar", respond-async'], True, 0),
        (['foo="bar, respond-async'], False, 0),
        (["respond-async not, wait=3"], False, 3),
        (['"respond-async"'], False, 0),
        ([" " * 8000 + "(", '"\\' * 4000, 'a="' * 2700], False, 0),
    ],
)
def test_preferences(values: list[str], respond_async: bool, wait: float) -> None:
    assert _read(*values) == Preferences(respond_async, wait)
