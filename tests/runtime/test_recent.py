"""A cache drops what is too much, and what nobody has used for a while."""

import asyncio
import gc
import weakref

from runtime.recent import Recent

IDLE = 0.2


class Text:
    """A value that a weak reference can follow."""


async def has_gone(value: "weakref.ref[Text]") -> bool:
    """Return whether a value leaves the memory within a few idle times, without any call."""
    for _ in range(40):
        gc.collect()
        if value() is None:
            return True
        await asyncio.sleep(IDLE / 4)
    return False


async def test_a_value_that_nobody_uses_leaves_the_memory() -> None:
    recent: Recent[str, Text] = Recent(max_size=10, max_idle=IDLE)
    recent.put("a", Text())
    held = recent.get("a")
    assert held is not None
    value = weakref.ref(held)
    del held
    assert await has_gone(value)
    assert recent.get("a") is None

    # Also one that is added after the cache was empty.
    recent.put("b", Text())
    later = weakref.ref(recent.get("b") or Text())
    assert await has_gone(later)


async def test_a_value_that_is_used_stays_and_the_others_do_not() -> None:
    recent: Recent[str, str] = Recent(max_size=10, max_idle=IDLE)
    for key in ("a", "b", "c"):
        recent.put(key, key)
    loop = asyncio.get_running_loop()
    end = loop.time() + 3 * IDLE
    while loop.time() < end:
        assert recent.get("b") == "b"
        await asyncio.sleep(IDLE / 20)
    assert [recent.get(key) for key in ("a", "b", "c")] == [None, "b", None]


async def test_the_least_recently_used_make_room() -> None:
    recent: Recent[str, str] = Recent(max_size=3)
    for key in ("a", "b", "c"):
        recent.put(key, key)
    assert recent.get("a") == "a"
    recent.put("d", "d", size=2)
    assert [recent.get(key) for key in "abcd"] == ["a", None, None, "d"]
    recent.put("d", "e", size=2)
    assert [recent.get(key) for key in "ad"] == ["a", "e"]


async def test_the_last_one_stays_whatever_its_size() -> None:
    recent: Recent[str, str] = Recent(max_size=3)
    recent.put("a", "a")
    recent.put("large", "b", size=4)
    assert [recent.get("a"), recent.get("large")] == [None, "b"]
    recent.drop("large")
    recent.drop("large")
    recent.put("c", "c", size=3)
    assert recent.get("c") == "c"
