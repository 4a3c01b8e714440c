"""Serializes availability as protobuf, thousands of times at once.

A response may have 200,000 ranges, which are 600,000 messages. Creating and serializing them
takes 0.2 s of processor time, in which no other call is answered, and here a fifth of that.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct

from appointments.v1 import availability_pb2 as rpc
from google.protobuf.timestamp_pb2 import Timestamp

from service.availability.query import Availability
from service.availability.ranges import Ranges
from service.rpc.wire import tag, varint, with_length

_SECOND = 1_000_000
# Seconds between these two are five bytes long as a varint: from 1978 to 3058.
_FIRST, _END = 1 << 28, 1 << 35
# The tag of `seconds`, and a varint of five bytes, of which all but the last have the highest bit
# set.
_TIMESTAMP = bytes((0x08, 0x80, 0x80, 0x80, 0x80, 0x00))
# `start` and `end` with their tags and lengths.
_RANGE = bytes((0x0A, len(_TIMESTAMP))) + _TIMESTAMP + bytes((0x12, len(_TIMESTAMP))) + _TIMESTAMP
# Elements that are encoded at once are filled up to one of few sizes.
_LEAST, _MOST = 16, 2048

_RESPONSE = rpc.QueryAvailabilityResponse
_RESOURCE = _RESPONSE.Resource


def encoded(found: Sequence[Availability]) -> bytes:
    """Return a response that has these resources.

    Serialized messages that are joined are one message, with the elements of both. Together,
    resources with few elements take half the time, and those with many take more, since their
    numbers do not fit into the processor's cache.
    """
    elements = sum(
        len(each.starts) + len(each.busy.starts) + len(each.free.starts) for each in found
    )
    if elements <= _MOST:
        return _encoded_together(found)
    return b"".join([_encoded_together([each]) for each in found])


def _encoded_together(found: Sequence[Availability]) -> bytes:
    before = tag(_RESPONSE.RESOURCES_FIELD_NUMBER)
    starts = _starts([each.starts for each in found])
    busy = _ranges(_RESOURCE.BUSY_FIELD_NUMBER, [each.busy for each in found])
    free = _ranges(_RESOURCE.FREE_FIELD_NUMBER, [each.free for each in found])
    parts: list[bytes] = []
    for each, *lists in zip(found, starts, busy, free, strict=True):
        content = [_RESOURCE(resource_id=each.resource_id).SerializeToString(), *lists]
        parts += (before, varint(sum(map(len, content))), *content)
    return b"".join(parts)


def _starts(several: Sequence[Sequence[int]]) -> Iterable[bytes]:
    """Return each of several lists as elements of a repeated field of Timestamp."""
    edges = [time for starts in several for time in (*starts[:1], *starts[-1:])]
    seconds = _whole_seconds(list(chain.from_iterable(several)), edges)
    if seconds is not None:
        field = _RESOURCE.STARTS_FIELD_NUMBER
        return _elements(field, _TIMESTAMP, seconds, [len(starts) for starts in several])
    return map(_any_starts, several)


def _any_starts(starts: Sequence[int]) -> bytes:
    resource = _RESOURCE()
    for start in starts:
        _set_time(resource.starts.add(), start)
    return resource.SerializeToString()


def _ranges(field: int, several: Sequence[Ranges]) -> Iterable[bytes]:
    """Return each of several lists as elements of a repeated field of TimeRange."""
    times = [0] * (2 * sum(len(ranges.starts) for ranges in several))
    times[::2] = chain.from_iterable(ranges.starts for ranges in several)
    times[1::2] = chain.from_iterable(ranges.ends for ranges in several)
    edges = [time for each in several for time in (*each.starts[:1], *each.ends[-1:])]
    seconds = _whole_seconds(times, edges)
    if seconds is not None:
        return _elements(field, _RANGE, seconds, [len(ranges.starts) for ranges in several])
    return [_any_ranges(field, ranges) for ranges in several]


def _any_ranges(field: int, ranges: Ranges) -> bytes:
    resource = _RESOURCE()
    add = (resource.busy if field == _RESOURCE.BUSY_FIELD_NUMBER else resource.free).add
    for start, end in zip(ranges.starts, ranges.ends, strict=True):
        # Twice as fast as creating messages and copying them.
        range_ = add()
        _set_time(range_.start, start)
        _set_time(range_.end, end)
    return resource.SerializeToString()


def _whole_seconds(times: Sequence[int], edges: Iterable[int]) -> list[int] | None:
    """Return times in seconds; None if they are not whole, or not five bytes long.

    `edges` are the first and last time of each list.
    """
    if not all(_FIRST <= edge // _SECOND < _END for edge in edges):
        return None
    seconds = [time // _SECOND for time in times]
    # Each second is at most its time. So the sums are equal only if all times are whole seconds.
    return seconds if sum(seconds) * _SECOND == sum(times) else None


def _elements(
    field: int, message: bytes, seconds: Sequence[int], counts: Iterable[int]
) -> Iterator[bytes]:
    """Yield elements of a repeated field, as many as the next count says.

    An element is the message with one number in each of its varints.
    """
    element = tag(field) + with_length(message)
    most = _MOST * message.count(_TIMESTAMP)
    content = b"".join(
        _encoded_at_once(element, seconds[first : first + most])
        for first in range(0, len(seconds), most)
    )
    first = 0
    for count in counts:
        end = first + count * len(element)
        yield content[first:end]
        first = end


def _encoded_at_once(element: bytes, seconds: Sequence[int]) -> bytes:
    """Return elements as one integer.

    A varint has seven bits in each byte, the lowest first. The bits of all seconds are moved
    there in five steps.
    """
    varints = element.count(_TIMESTAMP)
    count = len(seconds) // varints
    size = max(_LEAST, 1 << (count - 1).bit_length())  # a power of two
    places, masks = _layout(element, size)
    numbers = int.from_bytes(places.pack(*seconds, *[0] * (varints * (size - count))), "little")
    every = int.from_bytes(element * size, "little")
    for step, mask in enumerate(masks):
        every |= (numbers & mask) << step
    return every.to_bytes(size * len(element), "little")[: count * len(element)]


@lru_cache(maxsize=32)
def _layout(element: bytes, size: int) -> tuple[Struct, Sequence[int]]:
    """Return how numbers lie where the varints begin, and masks of their first, ... seven bits."""
    # After the tag of `seconds`.
    starts = [at + 1 for at in range(len(element)) if element.startswith(_TIMESTAMP, at)]
    between = len(element) - 8 * len(starts)
    masks = []
    for step in range(5):
        bits = sum(0x7F << (7 * step + 8 * start) for start in starts)
        masks.append(int.from_bytes(bits.to_bytes(len(element), "little") * size, "little"))
    return Struct(f"<{starts[0]}x" + ("Q" * len(starts) + f"{between}x") * size), masks


def _set_time(timestamp: Timestamp, time: int) -> None:
    timestamp.seconds, microseconds = divmod(time, _SECOND)
    timestamp.nanos = microseconds * 1000
