"""What the model's test draws: few ids, resources and times, so that writes meet."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st

from tests.writes.values import CONTENT_FIELDS, MAX_HOLD, Content, Write

MINUTES = st.integers(min_value=0, max_value=12)
IDS = ["a", "b", "c", "d"]
FEW_IDS = st.sampled_from(IDS)
FEW = len(IDS)
RESOURCES = st.sampled_from(["", "r", "s"])
MAYBE_TIME = st.none() | st.integers(min_value=0, max_value=3)
MAYBE_KEY = st.sampled_from([None] * 7 + ["k1", "k2", "k3"])
CREATE_ONLY = st.sampled_from([False] * 5 + [True])
# Which etag is sent: none, any, the stored one, or another one.
ETAGS = st.sampled_from([None, None, None, "*", "stored", "other"])
FEW_ETAGS = st.sampled_from([None] * 8 + ["*", "stored", "other"])
# Synchronously, or accepted and applied later.
WAYS = st.sampled_from(["call", "call", "accepted"])

# Holds that end long after the test; too late; before the test.
LONG = 1000
TOO_LONG = MAX_HOLD + 1
OVER = -1
HOLDS = st.sampled_from([None] * 10 + [LONG] * 4 + [LONG + 1] * 4 + [TOO_LONG, OVER])

JSON: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"a": 1}, {"a": {"b": 1.5}}, {"b": [None, "x"]}, {"a": {}, "b": True}]
)
PATCHES: st.SearchStrategy[dict[str, Any] | None] = st.none() | st.sampled_from(
    [{}, {"a": None}, {"a": 1}, {"a": {"b": None, "c": 2}}, {"b": {"c": None}}, {"a": []}]
)


@st.composite
def contents(draw: st.DrawFn, holds: st.SearchStrategy[int | None] = HOLDS) -> Content:
    start = draw(MINUTES)
    resource = draw(RESOURCES)
    more = draw(st.sampled_from([[], [], ["r"], ["s"], ["t"], ["r", "t"], ["t", "s", "r"]]))
    return Content(
        resource_id=resource,
        additional_resource_ids=tuple(other for other in more if other != resource),
        start=start,
        end=start + draw(st.integers(min_value=1, max_value=6)),
        title=draw(st.sampled_from(["", "t"])),
        attributes=draw(JSON),
        created_at=draw(MAYBE_TIME),
        updated_at=draw(MAYBE_TIME),
        hold_until=draw(holds),
    )


@st.composite
def updates(draw: st.DrawFn) -> tuple[Write, str]:
    """Draw an update, and how it names its fields: `names`, `*`, or by what the message has."""
    mask = draw(st.sampled_from(["names", "names", "absent", "*"]))
    content = draw(contents())
    allow_missing = draw(st.booleans())
    patch = draw(PATCHES) if mask != "*" else None
    fields = {*CONTENT_FIELDS} if mask == "*" else draw(st.sets(st.sampled_from(CONTENT_FIELDS)))
    if allow_missing:
        fields |= {"start", "end"}
    if patch is not None:
        fields -= {"attributes"}
    if mask == "absent":
        empty = Content(start=content.start, end=content.end)
        fields = {
            name
            for name in fields
            if name in ("start", "end", "attributes")
            or getattr(content, name) not in ("", (), None)
        }
        content = replace(empty, **{name: getattr(content, name) for name in fields})
    write = Write(
        kind="UPDATE",
        id=draw(FEW_IDS),
        content=content,
        fields=frozenset(fields),
        attributes_patch=patch,
        allow_missing=allow_missing,
    )
    return write, mask
