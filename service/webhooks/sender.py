"""Sending one request to a receiver that may be slow, broken or hostile."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import monotonic
from typing import Self

from aiohttp import (
    ClientConnectorDNSError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    StreamReader,
    TCPConnector,
    hdrs,
)
from yarl import URL

from service.metrics import Metrics
from service.webhooks.addresses import AddressRules
from service.webhooks.resolver import AddressRefused, GuardedResolver, LookUp, look_up
from service.webhooks.webhook import Attempt

# Of an answer's body no more is read, and not for longer; the rest costs the receiver its
# connection.
MAX_ANSWER_BYTES = 4 * 1024
ANSWER_SECONDS = 1.0
MAX_ERROR = 500
# Seconds for which a connection is kept: less than servers usually do.
KEEP_ALIVE = 3.0
USER_AGENT = "appointments-webhooks/1"


class Sender:
    """Sends to any URL that the address rules permit; use it as a context manager.

    Redirects are not followed; there are no cookies and no proxies. `timeout` (seconds)
    is for everything from the resolution of the name to the end of the answer.
    """

    def __init__(
        self,
        rules: AddressRules,
        metrics: Metrics,
        *,
        timeout: float,
        connections: int,
        look_up: LookUp = look_up,
    ) -> None:
        self._rules = rules
        self._metrics = metrics
        self._timeout = timeout
        self._connections = connections
        self._look_up = look_up
        self._stack = AsyncExitStack()
        # By whether they are for https: what http may reach is less.
        self._sessions: dict[bool, ClientSession] = {}

    async def __aenter__(self) -> Self:
        for secure in (False, True):
            connector = TCPConnector(
                resolver=GuardedResolver(self._rules, secure=secure, look_up=self._look_up),
                limit=self._connections,
                keepalive_timeout=KEEP_ALIVE,
            )
            session = ClientSession(
                connector=connector,
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=ClientTimeout(total=self._timeout),
                headers={hdrs.USER_AGENT: USER_AGENT},
            )
            self._sessions[secure] = await self._stack.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def send(self, url: str, body: str, headers: Mapping[str, str]) -> Attempt:
        """Send once, and tell what came of it; an answer other than 2xx is a failure."""
        started = monotonic()
        try:
            attempt = await self._send(URL(url), body.encode(), headers)
        except AddressRefused as error:
            attempt = _failed("refused", str(error))
        except ClientConnectorDNSError as error:  # what the resolver raised, wrapped
            if isinstance(error.os_error, AddressRefused):
                attempt = _failed("refused", str(error.os_error))
            else:
                attempt = _failed("connection", f"the name is not resolved: {error.os_error}")
        except TimeoutError:
            attempt = _failed("timeout", f"no answer within {self._timeout:g} s")
        except (ClientError, OSError, ValueError) as error:
            attempt = _failed("connection", f"no answer: {error or type(error).__name__}")
        ended = monotonic()
        self._metrics.webhook_seconds.labels(attempt.result).observe(ended - started)
        return replace(attempt, seconds=ended - started, ended=ended)

    async def _send(self, url: URL, body: bytes, headers: Mapping[str, str]) -> Attempt:
        # An address is not resolved, so the resolver does not see it.
        refusal = self._rules.refusal(url)
        if refusal is not None:
            raise AddressRefused(refusal)
        session = self._sessions[url.scheme == "https"]
        async with asyncio.timeout(self._timeout):
            try:
                return await self._post(session, url, body, headers)
            except ServerDisconnectedError:
                # It closed an idle connection at the very moment that it was used again.
                return await self._post(session, url, body, headers)

    async def _post(
        self, session: ClientSession, url: URL, body: bytes, headers: Mapping[str, str]
    ) -> Attempt:
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            # The status decides; an answer that never ends is not waited for.
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await _read_some(response.content)
            if not response.content.at_eof():
                response.close()
            status = response.status
            if 200 <= status < 300:
                return Attempt(result="taken", http_status=status)
            return Attempt(
                result="status",
                http_status=status,
                error=_status_error(status),
                retry_after=_retry_after(response),
            )


async def _read_some(content: StreamReader) -> None:
    left = MAX_ANSWER_BYTES
    while left > 0 and (chunk := await content.read(left)):
        left -= len(chunk)


def _failed(result: str, error: str) -> Attempt:
    # The texts of libraries and of receivers may hold anything.
    printable = "".join(char if char.isprintable() else " " for char in error)
    return Attempt(result=result, error=printable[:MAX_ERROR])


def _status_error(status: int) -> str:
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    redirect = "; redirects are not followed" if 300 <= status < 400 else ""
    return f"the answer was {phrase}{redirect}"


def _retry_after(response: ClientResponse) -> float | None:
    """Read the header Retry-After (RFC 9110, section 10.2.3) as seconds from now."""
    value = response.headers.get(hdrs.RETRY_AFTER, "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        time = parsedate_to_datetime(value)
    except ValueError:
        return None
    return time.timestamp() - datetime.now(UTC).timestamp()
