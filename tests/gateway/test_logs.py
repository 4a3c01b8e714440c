"""What the gateway logs, and what it must not log."""

import asyncio
import json
import subprocess
import sys

import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Response

from gateway.http.bodies import BodyReader
from gateway.http.context import RequestContext
from gateway.http.handler import Endpoint, HttpHandler
from gateway.http.router import Router
from gateway.metrics import Metrics
from local.programs import ROOT
from runtime.logs import configure_logs


class _Crash:
    name = "/crash"
    takes_body = False

    async def __call__(self, context: RequestContext) -> Response:
        held = context.request.headers["X-Held"]
        raise RuntimeError(f"{len(held)} characters")


def crash(format: str, held: str) -> None:
    """Log an exception whose traceback has `held` in its local variables."""
    configure_logs("gateway", level="info", format=format)
    router: Router[Endpoint] = Router()
    router.add("GET", "/crash", _Crash())
    handler = HttpHandler(router, BodyReader(max_bytes=1, timeout=1), Metrics(lambda: 0, lambda: 0))

    async def handle() -> None:
        await handler(make_mocked_request("GET", "/crash", {"X-Held": held}))

    asyncio.run(handle())


@pytest.mark.parametrize("format", ["json", "text"])
def test_an_unexpected_error_is_logged_without_local_variables(format: str) -> None:
    code = f"from tests.gateway.test_logs import crash; crash({format!r}, 'hun' + 'ter2')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "RuntimeError: 7 characters" in done.stdout
    assert "hunter2" not in done.stdout
    if format == "json":
        error, request = map(json.loads, done.stdout.splitlines())
        assert (error["event"], error["level"]) == ("unexpected error", "error")
        assert isinstance(error["exception"], str)
        assert request["status"] == 500
