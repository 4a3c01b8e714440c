"""Sends one request to a receiver that may be slow, broken or hostile."""

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

# Limits on reading a response body. The connection is closed if the body is longer or slower.
MAX_RESPONSE_BYTES = 4 * 1024
RESPONSE_SECONDS = 1.0
# Characters of an error in the log of deliveries.
MAX_ERROR = 500
# Seconds that an idle connection is kept. Servers usually keep them longer.
KEEP_ALIVE = 3.0
USER_AGENT = "appointments-webhooks/1"


class Sender:
    """Sends to URLs that the address rules permit. Use it as a context manager.

    It follows no redirects and uses no cookies and no proxies. `timeout` (seconds) covers
    everything from resolving the name to the end of the response.
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
        # One session for https, one for http: http may reach fewer addresses.
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
        self, url: str, body: str, headers: Mapping[str, str], *, resend: bool = False
    ) -> Attempt:
        """Send a request and return the outcome. Every status other than 2xx is a failure.

        With `resend`, the request is sent a second time if the receiver closed a reused
        connection without a response: most likely it closed the connection before the
        request arrived. Raises nothing for a failure of the receiver.
        """
        started = monotonic()
        try:
            attempt = await self._send(read_url(url), body.encode(), headers, resend)
        except InvalidURL as error:
            attempt = _failed("refused", f"the URL {error}")
        except AddressRefused as error:
            attempt = _failed("refused", str(error))
        except ClientConnectorDNSError as error:  # wraps the resolver's error
            if isinstance(error.os_error, AddressRefused):
                attempt = _failed("refused", str(error.os_error))
            else:
                attempt = _failed("connection", f"the name is not resolved: {error.os_error}")
        except TimeoutError:
            attempt = _failed("timeout", f"no answer within {self._timeout:g} s")
        except ClientResponseError as error:  # str(error) contains the URL, which may be secret
            attempt = _failed("connection", f"no answer in HTTP: {error.message}")
        except (ClientError, OSError, ValueError) as error:
            attempt = _failed("connection", f"no answer: {error or type(error).__name__}")
        ended = monotonic()
        self._metrics.webhook_seconds.labels(attempt.result).observe(ended - started)
        return replace(attempt, seconds=ended - started, ended=ended)

    async def _send(
        self, url: URL, body: bytes, headers: Mapping[str, str], resend: bool
    ) -> Attempt:
        # A host that is an address is not resolved, so the resolver does not check it.
        refusal = self._rules.refusal(url)
        if refusal is not None:
            raise AddressRefused(refusal)
        end = asyncio.get_running_loop().time() + self._timeout
        async with asyncio.timeout_at(end):
            response = await self._post(url, body, headers, resend)
        try:
            return _attempt(response)
        finally:
            await _read_rest(response, end)

    async def _post(
        self, url: URL, body: bytes, headers: Mapping[str, str], resend: bool
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
                if not (resend and connection.reused):
                    raise
                resend = False


@dataclass(slots=True)
class _Connection:
    """Whether a request was sent on a connection of an earlier one."""

    reused: bool = False


async def _note_reuse(
    _: ClientSession, context: SimpleNamespace, __: TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


def _attempt(response: ClientResponse) -> Attempt:
    """Return the outcome, which depends on the status and headers alone."""
    status = response.status
    if 200 <= status < 300:
        return Attempt(result="taken", http_status=status)
    return Attempt(
        result="status",
        http_status=status,
        error=_status_error(status),
        retry_after=read_retry_after(response.headers.get(hdrs.RETRY_AFTER, "").strip()),
    )


async def _read_rest(response: ClientResponse, end: float) -> None:
    """Read the body within the limits, so that the connection can be reused.

    Errors are ignored, since the status has decided the outcome.
    """
    end = min(end, asyncio.get_running_loop().time() + RESPONSE_SECONDS)
    left = MAX_RESPONSE_BYTES
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
    # The error may contain text of the receiver, and any character.
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

    Returns None if it is invalid. The library's date parser raises more than the errors that
    it documents.
    """
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        time = parsedate_to_datetime(value)
        # "-0000" is UTC with an unknown local time zone (RFC 5322, section 3.3).
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        return (aware - datetime.now(UTC)).total_seconds()
    except Exception:  # noqa: BLE001
        return None
