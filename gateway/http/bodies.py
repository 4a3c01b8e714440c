"""Reads request bodies, limited in size and time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Self

from aiohttp import HttpVersion11, StreamReader, hdrs
from aiohttp.web import BaseRequest, RequestPayloadError

from gateway.http.problems import ProblemError, malformed, refusal
from public_json.reasons import Reason

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"

JSON_TYPES = (JSON,)
PATCH_TYPES = (MERGE_PATCH, JSON)
"""The media types of a PATCH (RFC 7396)."""

ACCEPT_PATCH = "Accept-Patch"

MAX_SINGLE_BYTES = 256 * 1024
"""The longest body without a list of messages. The content of an appointment is at most half as
long, even if every character is escaped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReader:
    """Reads JSON bodies. `max_bytes` is in bytes, `timeout` in seconds."""

    max_bytes: int
    timeout: float

    def for_single(self) -> Self:
        """Return a reader of bodies without a list of messages."""
        return replace(self, max_bytes=min(self.max_bytes, MAX_SINGLE_BYTES))

    async def read(self, request: BaseRequest, media_types: Sequence[str] = JSON_TYPES) -> bytes:
        """Read the whole body, which has one of these media types.

        Raises `ProblemError`: 415 for another media type or a compressed body, 413 for a body
        that is too large, 408 if it takes too long, 400 if it is incomplete. A chunked body is
        refused as soon as it exceeds the limit.
        """
        self._check_headers(request, media_types)
        content = request.content
        if content.is_eof():  # most bodies arrive with the headers
            body = content.read_nowait()
            if len(body) > self.max_bytes:
                raise self._too_large()
            return body
        async with self._arriving(request):
            return await self._receive(content)

    async def refuse(self, request: BaseRequest) -> None:
        """Refuse a body of a method that takes none.

        Ignoring the body could change what a request means: it may name the organization of a
        cancellation. An empty chunked body, which some proxies send, is accepted once its end
        has arrived. Raises `ProblemError`: 400, or 408 if that takes too long.
        """
        content = request.content
        if content.at_eof():
            return
        if request.content_length is None:
            async with self._arriving(request):
                if not await content.readany():
                    return
        raise malformed(
            "This method takes no body; its input is in the path, the query and the headers."
        )

    @asynccontextmanager
    async def _arriving(self, request: BaseRequest) -> AsyncIterator[None]:
        """Limit the time in which the block receives the body. Raises `ProblemError`: 408, 400."""
        await _send_continue(request)
        try:
            async with asyncio.timeout(self.timeout):
                yield
        except TimeoutError:
            raise refusal(
                Reason.REQUEST_TIMEOUT,
                f"The body did not arrive within {self.timeout:g} s.",
                {hdrs.CONNECTION: "close"},
            ) from None
        except RequestPayloadError:
            raise malformed("The body ended before it was complete.") from None

    async def _receive(self, content: StreamReader) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := await content.readany():
            size += len(chunk)
            if size > self.max_bytes:
                raise self._too_large()
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_headers(self, request: BaseRequest, media_types: Sequence[str]) -> None:
        if (request.content_length or 0) > self.max_bytes:
            raise self._too_large()
        charset = request.charset
        if request.content_type not in media_types or (
            charset is not None and charset.lower() not in {"utf-8", "utf8"}
        ):
            # RFC 5789, section 2.2
            patch = {ACCEPT_PATCH: ", ".join(media_types)} if MERGE_PATCH in media_types else None
            body = "The body is empty; it" if request.content.at_eof() else "The body"
            raise _unsupported(f"{body} must be {' or '.join(media_types)}, in UTF-8.", patch)
        encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
        if encoding.strip().lower() != "identity":
            raise _unsupported(
                "The body must not be compressed.", {hdrs.ACCEPT_ENCODING: "identity"}
            )

    def _too_large(self) -> ProblemError:
        return refusal(
            Reason.REQUEST_TOO_LARGE, f"The body must be at most {self.max_bytes} bytes."
        )


async def _send_continue(request: BaseRequest) -> None:
    """Send 100 Continue if the client expects it and has not sent the whole body yet."""
    if (
        request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
        and request.version >= HttpVersion11
        and not request.content.is_eof()
    ):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response itself has not begun


def _unsupported(detail: str, headers: dict[str, str] | None = None) -> ProblemError:
    return refusal(Reason.UNSUPPORTED_MEDIA_TYPE, detail, headers)
