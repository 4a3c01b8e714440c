"""A webhook receiver: a real HTTP server on loopback with responses chosen by the test."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

LOOPBACK = "127.0.0.0/8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A received request."""

    path: str
    headers: Mapping[str, str]
    text: str
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def revision(self) -> int:
        return int(self.json["data"]["revision"])


Answer = Callable[[Received], Awaitable[web.Response]]


def status(code: int, **headers: str) -> Answer:
    """Respond to everything with this status."""

    async def answer(received: Received) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, headers=named)

    return answer


async def hang(received: Received) -> web.Response:
    """Never respond."""
    await asyncio.sleep(3600)
    return web.Response()


@dataclass(slots=True)
class Receiver:
    """Responds with 200, or as `answers` says for a path. Use it as a context manager."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    port: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        assert listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def at(self, path: str) -> list[Received]:
        """Return the requests to a path so far."""
        return [each for each in list(self.requests) if each.path == path]

    def revisions(self, path: str) -> list[int]:
        return [each.revision for each in self.at(path)]

    def _run(self, listening: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._listen())
        listening.set()
        self._loop.run_forever()
        self._loop.run_until_complete(_end(runner))
        self._loop.close()

    async def _listen(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        return runner

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        received = Received(
            path=request.path,
            headers=dict(request.headers),
            text=await request.text(),
            at=time.monotonic(),
        )
        self.requests.append(received)
        answer = self.answers.get(request.path)
        return await answer(received) if answer else web.Response()


async def _end(runner: web.ServerRunner) -> None:
    """Stop the server, including requests that hang."""
    await runner.cleanup()
    hanging = asyncio.all_tasks() - {asyncio.current_task()}
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
