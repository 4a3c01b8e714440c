"""A change is the same JSON text by REST, by server-sent events and in a webhook's body."""

import json
import re
from urllib.request import Request, urlopen

from local.programs import Program
from tests.conftest import StartProgram
from tests.observing import until
from tests.rest_client import END, START
from tests.webhooks.hooked import Hooked

ATTRIBUTES = re.compile(r'"attributes":(\{.*\}),"createdAt"')
GIVEN = {
    "one": 1,
    "minus": -1.0,
    "half": 0.5,
    "exact": 2**53 + 2,
    "large": 1e18,
    "beyond": 1e22,
    "small": 1e-9,
    "zero": -0.0,
    "nested": [3, {"b": 4, "a": [5.0]}],
    "text": "\u00e9 \u2028 \x7f \\ / \" <",
}  # fmt: skip


def attributes(text: str) -> str:
    [found] = ATTRIBUTES.findall(text)
    return str(found)


def test_numbers_and_texts_are_printed_the_same(
    hooked: Hooked, start: StartProgram, programs: tuple[Program, Program]
) -> None:
    hooked.hook("/a")
    start()
    assert hooked.rest.upsert("a", start=START, end=END, attributes=GIVEN).status == 201
    until(lambda: len(hooked.receiver.at("/a")) == 1)
    changes = f"http://{programs[1].address}/api/changes?organizationId={hooked.org.id}"
    with urlopen(changes, timeout=10) as answer:
        rest = attributes(answer.read().decode())
    live = Request(f"{changes}&afterRevision=0", headers={"Accept": "text/event-stream"})
    with urlopen(live, timeout=10) as stream:
        event = next(line for line in stream if line.startswith(b"data:")).decode()
    body = hooked.receiver.at("/a")[0].text
    assert '"one":1,' in rest
    assert attributes(event) == rest
    assert attributes(body) == rest
    # Names are sorted at every level, so that a change always has the same text.
    names = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"))
    assert re.findall(r'"\w+":', names) == re.findall(r'"\w+":', body)
