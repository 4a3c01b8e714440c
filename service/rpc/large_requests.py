"""Lets large requests be read in turn and in parts, so that other calls are answered meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

from service.errors import MalformedRequest, Overloaded, RequestTooLarge

# The longest request that has no list of messages. The content of an appointment is at most half as
# long, whatever its characters and numbers are.
MAX_SINGLE_BYTES = 256 * 1024
# Longer requests that may wait to be read.
MAX_WAITING = 16
# A pause, as a multiple of the time that reading took since the last one.
PAUSE = 3
# Seconds of reading without a pause, after which the next part waits.
MAX_READING = 0.002
# A part has at least so many bytes, except for the last one.
PART_BYTES = 64 * 1024

# How a field of a message is encoded: the lowest bits of its tag.
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


class Turn:
    """The turn of one request."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def after_part(self) -> None:
        """Pause if reading has taken long."""
        if time.perf_counter() - self._began > MAX_READING:
            await self.pause()

    async def pause(self) -> None:
        """Let other calls be answered."""
        await asyncio.sleep(PAUSE * (time.perf_counter() - self._began))
        self._began = time.perf_counter()


class LargeRequests:
    """Requests that are read one after another, and for at most a quarter of the time.

    What waits is as it came, so that a few compressed kilobytes do not become megabytes in memory.
    """

    def __init__(self) -> None:
        self._reading = asyncio.Lock()
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait until the block may read a request. Raises Overloaded if too many wait."""
        if self._waiting >= MAX_WAITING:
            raise Overloaded("too many large requests wait; nothing was written, try again later")
        self._waiting += 1
        try:
            async with self._reading:
                turn = Turn()
                try:
                    yield turn
                finally:
                    await turn.pause()
        finally:
            self._waiting -= 1


def parts_of(request: bytes, most: Mapping[int, int]) -> Iterator[bytes]:
    """Cut a serialized message between its fields. Merged one after another, the parts are it.

    `most` has the most elements of repeated fields, by number. The message is cut off after the
    first element too many, with which it is invalid, whatever follows.

    Raises RequestTooLarge if a field has more than MAX_SINGLE_BYTES, as reading it is a pause for
    all other calls, or MalformedRequest.
    """
    counts: Counter[int] = Counter()
    begin = at = 0
    try:
        while at < len(request):
            tag, at = _varint(request, at)
            number, kind = tag >> 3, tag & 7
            if kind == _DELIMITED:
                length, at = _varint(request, at)
                if length > MAX_SINGLE_BYTES:
                    raise RequestTooLarge(
                        f"a field of the request must have at most {MAX_SINGLE_BYTES} bytes"
                    )
                at += length
            elif kind == _VARINT:
                _, at = _varint(request, at)
            elif kind in _SIZES:
                at += _SIZES[kind]
            else:
                raise MalformedRequest(f"the message has a field of the wire type {kind}")
            counts[number] += 1
            if counts[number] > most.get(number, len(request)):
                break
            if at - begin >= PART_BYTES:
                yield request[begin:at]
                begin = at
    except IndexError as error:
        raise MalformedRequest("the message ends in the middle of a field") from error
    yield request[begin:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number that is encoded in groups of seven bits, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedRequest("the message has a number of more than 64 bits")
