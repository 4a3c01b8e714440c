"""Reading request bodies within limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import HttpVersion11, StreamReader, hdrs
from aiohttp.web import BaseRequest, RequestPayloadError

from gateway.http.problems import ProblemError, malformed, refusal
from public_json.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReader:
    """Reads JSON bodies; sizes in bytes, times in seconds."""

    max_bytes: int
    timeout: float

    async def read(self, request: BaseRequest) -> bytes:
        """Read the whole body.

        Raises `ProblemError`: 415 for another media type or a compressed body, 413 for
        too much of it, counted as it comes if it is chunked, 408 if it takes too long.
        """
        self._check_headers(request)
        content = request.content
        if content.is_eof():  # it arrived with the headers, as most do
            body = content.read_nowait()
            if len(body) > self.max_bytes:
                raise self._too_large()
            return body
        async with self._arriving(request):
            return await self._receive(content)

    async def refuse(self, request: BaseRequest) -> None:
        """Raise `ProblemError` if there is a body where none has a meaning: 400.

        Passing over it could drop what its caller meant, the organization of a cancel for
        one. A chunked body without a byte is none, as some proxies send it; its end is
        waited for as that of every body.
        """
        content = request.content
        if content.at_eof():
            return
        if request.content_length is None:
            async with self._arriving(request):
                if not await content.readany():
                    return
        raise malformed(
            "This method takes no body; what it is told stands in the path, the query and headers."
        )

    @asynccontextmanager
    async def _arriving(self, request: BaseRequest) -> AsyncIterator[None]:
        """Read what is still on its way, in time. Raises `ProblemError`: 408, 400."""
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

    def _check_headers(self, request: BaseRequest) -> None:
        if (request.content_length or 0) > self.max_bytes:
            raise self._too_large()
        charset = request.charset
        if request.content_type != "application/json" or (
            charset is not None and charset.lower() not in {"utf-8", "utf8"}
        ):
            raise _unsupported("The body must be application/json, in UTF-8.")
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
    """Tell a caller that asks first to go on, unless it has sent everything already."""
    if (
        request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
        and request.version >= HttpVersion11
        and not request.content.is_eof()
    ):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


def _unsupported(detail: str, headers: dict[str, str] | None = None) -> ProblemError:
    return refusal(Reason.UNSUPPORTED_MEDIA_TYPE, detail, headers)
