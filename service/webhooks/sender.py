"""Sending one request to a receiver that may be slow, broken or hostile."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import monotonic
from types import SimpleNamespace
from typing import Self

from aiohttp import (
    ClientConnectorDNSError,
    ClientError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
    TCPConnector,
    TraceConfig,
    TraceConnectionReuseconnParams,
    hdrs,
)
from yarl import URL

from service.metrics import Metrics
from service.webhooks.addresses import AddressRules
from service.webhooks.resolver import AddressRefused, GuardedResolver, LookUp, look_up
from service.webhooks.url import InvalidURL, read_url
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
        trace = TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
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
                trace_configs=[trace],
            )
            self._sessions[secure] = await self._stack.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def send(
        self, url: str, body: str, headers: Mapping[str, str], *, repeat: bool = False
    ) -> Attempt:
        """Send once, and tell what came of it; an answer other than 2xx is a failure.

        With `repeat` it is sent a second time if the receiver closed a connection that was
        kept from a request before, instead of answering on it: most likely it had closed it
        before this request came.
        """
        started = monotonic()
        try:
            attempt = await self._send(read_url(url), body.encode(), headers, repeat)
        except InvalidURL as error:
            attempt = _failed("refused", f"the URL {error}")
        except AddressRefused as error:
            attempt = _failed("refused", str(error))
        except ClientConnectorDNSError as error:  # what the resolver raised, wrapped
            if isinstance(error.os_error, AddressRefused):
                attempt = _failed("refused", str(error.os_error))
            else:
                attempt = _failed("connection", f"the name is not resolved: {error.os_error}")
        except TimeoutError:
            attempt = _failed("timeout", f"no answer within {self._timeout:g} s")
        except ClientResponseError as error:  # its text holds the URL, and so its secrets
            attempt = _failed("connection", f"no answer in HTTP: {error.message}")
        except (ClientError, OSError, ValueError) as error:
            attempt = _failed("connection", f"no answer: {error or type(error).__name__}")
        ended = monotonic()
        self._metrics.webhook_seconds.labels(attempt.result).observe(ended - started)
        return replace(attempt, seconds=ended - started, ended=ended)

    async def _send(
        self, url: URL, body: bytes, headers: Mapping[str, str], repeat: bool
    ) -> Attempt:
        # An address is not resolved, so the resolver does not see it.
        refusal = self._rules.refusal(url)
        if refusal is not None:
            raise AddressRefused(refusal)
        end = asyncio.get_running_loop().time() + self._timeout
        async with asyncio.timeout_at(end):
            response = await self._post(url, body, headers, repeat)
        try:
            return _judged(response)
        finally:
            await _finish(response, end)

    async def _post(
        self, url: URL, body: bytes, headers: Mapping[str, str], repeat: bool
    ) -> ClientResponse:
        session = self._sessions[url.scheme == "https"]
        connection = _Connection()
        while True:
            try:
                return await session.post(
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    trace_request_ctx=connection,
                )
            except ServerDisconnectedError:
                if not (repeat and connection.reused):
                    raise
                repeat = False


@dataclass(slots=True)
class _Connection:
    """What a request went over."""

    reused: bool = False


async def _note_reuse(
    _: ClientSession, context: SimpleNamespace, __: TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


def _judged(response: ClientResponse) -> Attempt:
    """Tell what an answer means; the status decides, before any of the body is read."""
    status = response.status
    if 200 <= status < 300:
        return Attempt(result="taken", http_status=status)
    return Attempt(
        result="status",
        http_status=status,
        error=_status_error(status),
        retry_after=read_retry_after(response.headers.get(hdrs.RETRY_AFTER, "").strip()),
    )


async def _finish(response: ClientResponse, end: float) -> None:
    """Read the end of an answer, so that the connection is kept; not much, and not for long.

    Nothing about the body changes what the status has decided, whatever is wrong with it.
    """
    end = min(end, asyncio.get_running_loop().time() + ANSWER_SECONDS)
    left = MAX_ANSWER_BYTES
    try:
        with suppress(Exception):
            async with asyncio.timeout_at(end):
                while left > 0 and (chunk := await response.content.read(left)):
                    left -= len(chunk)
    finally:
        if not response.content.at_eof():
            response.close()
        response.release()


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


def read_retry_after(value: str) -> float | None:
    """Read the header Retry-After (RFC 9110, section 10.2.3) as seconds from now.

    What cannot be read is as if it were not there. Receivers write anything, and the
    library's parser of dates raises more than it says.
    """
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        time = parsedate_to_datetime(value)
        # "-0000": in UTC, from a place whose own time is not told (RFC 5322).
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        return (aware - datetime.now(UTC)).total_seconds()
    except Exception:  # noqa: BLE001
        return None
