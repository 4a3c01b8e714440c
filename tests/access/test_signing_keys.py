"""Signing keys from a URL: fetched again when needed, and kept for a bounded time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from service.access.signing_keys import SigningKeys, SigningKeysUnavailable, fetch
from service.errors import AccessUnavailable
from service.metrics import Metrics
from tests.access.issuer import SigningKey, key_set
from tests.observing import until


class KeyServer:
    """An HTTP server whose answer a test sets, and which counts the requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.answer: Callable[[], web.StreamResponse] = lambda: web.Response(text=key_set())
        self.url = ""
        # Set while answers are held back.
        self.held = asyncio.Event()
        self.held.set()

    def publish(self, *keys: SigningKey) -> None:
        self.answer = lambda: web.Response(text=key_set(*keys))

    def fail(self) -> None:
        self.answer = lambda: web.Response(status=500)

    async def handle(self, _: web.Request) -> web.StreamResponse:
        self.requests += 1
        await self.held.wait()
        return self.answer()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    app = web.Application()
    app.router.add_get("/keys", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    yield server
    server.held.set()
    await runner.cleanup()


def keys_of(
    server: KeyServer, *, interval: float = 60, max_age: float = 60, min_interval: float = 0
) -> SigningKeys:
    return SigningKeys(
        fetch(server.url),
        Metrics(),
        algorithms=["ES256"],
        interval=interval,
        max_age=max_age,
        min_interval=min_interval,
    )


async def test_an_unknown_key_is_fetched_once_in_the_minimal_interval(server: KeyServer) -> None:
    server.publish(SigningKey("a"))
    keys = keys_of(server, min_interval=0.5)
    await keys.load()
    assert await keys.find("a", "ES256")
    server.publish(SigningKey("a"), SigningKey("b"))
    assert await keys.find("b", "ES256") is None
    assert server.requests == 1
    await asyncio.sleep(0.5)
    found = await asyncio.gather(*(keys.find("b", "ES256") for _ in range(100)))
    assert all(found)
    assert server.requests == 2
    # An algorithm that is not allowed is never looked for.
    await asyncio.sleep(0.5)
    assert await keys.find("c", "HS256") is None
    assert server.requests == 2


async def test_a_caller_waits_for_a_fetch_that_has_begun(server: KeyServer) -> None:
    server.publish(SigningKey("a"))
    keys = keys_of(server, min_interval=10)
    server.held.clear()
    first = asyncio.create_task(keys.refresh())
    await asyncio.to_thread(until, lambda: server.requests > 0)
    second = asyncio.create_task(keys.find("a", "ES256"))
    await asyncio.sleep(0.05)
    first.cancel()  # its caller has gone
    server.held.set()
    assert await second
    assert server.requests == 1


async def test_keys_are_fetched_in_the_background(server: KeyServer) -> None:
    server.publish(SigningKey("a"))
    keys = keys_of(server, interval=0.1, min_interval=0.05)
    following = asyncio.create_task(keys.follow())
    try:
        await asyncio.to_thread(until, lambda: server.requests >= 3)
        before = keys.generation
        server.publish(SigningKey("b"))
        await asyncio.to_thread(until, lambda: keys.generation > before)
        assert await keys.find("b", "ES256")
        assert keys.generation == before + 1
    finally:
        following.cancel()


async def test_old_keys_are_used_for_a_bounded_time(server: KeyServer) -> None:
    server.publish(SigningKey("a"))
    keys = keys_of(server, max_age=1)
    await keys.load()
    server.fail()
    await keys.refresh()
    assert await keys.find("a", "ES256")
    # It may be a new key, which cannot be known.
    with pytest.raises(AccessUnavailable, match="signing keys cannot be read"):
        await keys.find("b", "ES256")
    await asyncio.sleep(1)
    with pytest.raises(AccessUnavailable, match="signing keys cannot be read"):
        await keys.find("a", "ES256")
    with pytest.raises(AccessUnavailable):  # for tokens that are remembered
        keys.check_age()
    server.publish(SigningKey("a"))
    await keys.refresh()
    assert await keys.find("a", "ES256")
    assert await keys.find("b", "ES256") is None


async def test_before_the_first_fetch_tokens_cannot_be_checked(server: KeyServer) -> None:
    server.fail()
    keys = keys_of(server)
    with pytest.raises(AccessUnavailable):
        await keys.find("a", "ES256")


async def test_a_token_without_an_id_needs_the_only_key(server: KeyServer) -> None:
    server.publish(SigningKey(None))
    keys = keys_of(server)
    await keys.load()
    assert await keys.find(None, "ES256")
    server.publish(SigningKey("a"), SigningKey("b"))
    await keys.load()
    assert await keys.find(None, "ES256") is None


@pytest.mark.parametrize(
    "odd",
    [
        {"key_ops": None},
        {"key_ops": "verify"},
        {"crv": ["P-256"]},
        {"crv": None},
        {"x": 1},
        {"x": None},
        {"kid": []},
        {"use": []},
        {"alg": []},
        {"kty": None},
    ],
)
async def test_an_odd_key_does_not_hide_the_others(server: KeyServer, odd: dict[str, Any]) -> None:
    document = key_set({**SigningKey("odd").jwk(), **odd}, SigningKey("a"))
    server.answer = lambda: web.Response(text=document)
    keys = keys_of(server)
    await keys.load()
    assert await keys.find("a", "ES256")
    assert await keys.find("odd", "ES256") is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: web.Response(status=404), "status 404"),
        (lambda: web.Response(status=302, headers={"Location": "/other"}), "status 302"),
        (lambda: web.Response(text="{"), "the JWK set is not JSON"),
        (lambda: web.Response(text="[]"), "has no list of keys"),
        (lambda: web.Response(text='{"keys": {}}'), "has no list of keys"),
        (lambda: web.Response(text='{"keys": []}'), "has no key to check a signature of ES256"),
        (lambda: web.Response(text='{"keys": [1, {"kty": 1}, {"kty": []}]}'), "has no key"),
        (lambda: web.Response(body=bytes(300_000)), "more than 262,144 bytes"),
    ],
)
async def test_an_answer_that_is_no_key_set_is_refused(
    server: KeyServer, answer: Callable[[], web.StreamResponse], why: str
) -> None:
    server.answer = answer
    with pytest.raises(SigningKeysUnavailable, match=why):
        await keys_of(server).load()


async def test_a_fetch_is_bounded_in_time(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.access.signing_keys.FETCH_TIMEOUT", 0.2)
    server.held.clear()
    with pytest.raises(SigningKeysUnavailable, match=r"no answer in 0\.2 s"):
        await keys_of(server).load()
