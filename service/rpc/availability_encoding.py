"""Serializes availability as protobuf, thousands of times at once.

A response may have 200,000 ranges, which are 600,000 messages. Creating and serializing them
takes 0.2 s of processor time, in which no other call is answered, and here a fifth of that.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from struct import Struct

from appointments.v1 import availability_pb2 as rpc
from google.protobuf.timestamp_pb2 import Timestamp

from service.availability.query import Answer, Availability
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
_RESOURCES = tag(_RESPONSE.RESOURCES_FIELD_NUMBER)
_RESOURCE_ID = tag(_RESOURCE.RESOURCE_ID_FIELD_NUMBER)
_BUSY, _FREE = _RESOURCE.BUSY_FIELD_NUMBER, _RESOURCE.FREE_FIELD_NUMBER
_STARTS = _RESOURCE.STARTS_FIELD_NUMBER


def encoded(answer: Answer) -> bytes:
    """Return a response that has these resources.

    Serialized messages that are joined are one message, with the elements of both. Together,
    resources with few elements take half the time, and those with many take more, since their
    numbers do not fit into the processor's cache.
    """
    found = answer.found
    starts = _starts(answer)
    elements = sum(len(each.busy.starts) + len(each.free.starts) for each in found)
    if elements <= _MOST:
        return _encoded_together(found, starts)
    return b"".join(
        [_encoded_together([each], [of_it]) for each, of_it in zip(found, starts, strict=True)]
    )


def _encoded_together(found: Sequence[Availability], starts: Sequence[bytes]) -> bytes:
    busy, free = [each.busy for each in found], [each.free for each in found]
    times = [*_edges(busy), *_edges(free)]
    seconds = _whole_seconds(times)
    if seconds is None:
        encoded_busy = [_any_ranges(_BUSY, ranges) for ranges in busy]
        encoded_free = [_any_ranges(_FREE, ranges) for ranges in free]
    else:
        many = 2 * sum([len(each.starts) for each in busy])
        encoded_busy = _encoded_ranges(_BUSY, busy, seconds[:many])
        encoded_free = _encoded_ranges(_FREE, free, seconds[many:])
    parts: list[bytes] = []
    for each, *lists in zip(found, encoded_busy, encoded_free, starts, strict=True):
        name = each.resource_id
        content = [b"" if name is None else _RESOURCE_ID + with_length(name.encode()), *lists]
        parts += (_RESOURCES, varint(sum(map(len, content))), *content)
    return b"".join(parts)


def _edges(several: Sequence[Ranges]) -> Sequence[int]:
    """Return the start and the end of each range."""
    times = [0] * (2 * sum([len(each.starts) for each in several]))
    times[::2] = chain.from_iterable([each.starts for each in several])
    times[1::2] = chain.from_iterable([each.ends for each in several])
    return times


def _encoded_ranges(field: int, several: Sequence[Ranges], seconds: Sequence[int]) -> list[bytes]:
    """Return each of several lists as elements of a repeated field of TimeRange."""
    content, size = _elements(field, _RANGE, seconds)
    ends = list(accumulate([len(each.starts) * size for each in several]))
    return [content[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _any_ranges(field: int, ranges: Ranges) -> bytes:
    resource = _RESOURCE()
    add = (resource.busy if field == _BUSY else resource.free).add
    for start, end in zip(*ranges, strict=True):
        # Twice as fast as creating messages and copying them.
        range_ = add()
        _set_time(range_.start, start)
        _set_time(range_.end, end)
    return resource.SerializeToString()


def _starts(answer: Answer) -> Sequence[bytes]:
    """Return the starts of each resource. Candidates are encoded once for all of them."""
    seconds = _whole_seconds(answer.candidates)
    if seconds is None:
        elements = list(map(_any_start, answer.candidates))
        return [
            b"".join([start for first, end in each.starts for start in elements[first:end]])
            for each in answer.found
        ]
    content, size = _elements(_STARTS, _TIMESTAMP, seconds)
    return [
        b"".join([content[first * size : end * size] for first, end in each.starts])
        for each in answer.found
    ]


def _any_start(start: int) -> bytes:
    resource = _RESOURCE()
    _set_time(resource.starts.add(), start)
    return resource.SerializeToString()


def _whole_seconds(times: Sequence[int]) -> Sequence[int] | None:
    """Return times in seconds; None if they are not whole, or not five bytes long."""
    if not times:
        return times
    if min(times) < _FIRST * _SECOND or max(times) >= _END * _SECOND:
        return None
    seconds = [time // _SECOND for time in times]
    # Each second is at most its time. So the sums are equal only if all times are whole seconds.
    return seconds if sum(seconds) * _SECOND == sum(times) else None


def _elements(field: int, message: bytes, seconds: Sequence[int]) -> tuple[bytes, int]:
    """Return elements of a repeated field, and the size of one.

    An element is the message with one number in each of its varints.
    """
    element = tag(field) + with_length(message)
    most = _MOST * message.count(_TIMESTAMP)
    content = [
        _encoded_at_once(element, seconds[first : first + most])
        for first in range(0, len(seconds), most)
    ]
    return b"".join(content), len(element)


def _encoded_at_once(element: bytes, seconds: Sequence[int]) -> bytes:
    """Return elements as one integer.

    A varint has seven bits in each byte, the lowest first. The bits of all seconds are moved
    there in five steps.
    """
    varints = element.count(_TIMESTAMP)
    count = len(seconds) // varints
    size = max(_LEAST, 1 << (count - 1).bit_length())  # a power of two
    every, places, masks = _layout(element, size)
    numbers = int.from_bytes(places.pack(*seconds, *[0] * (varints * (size - count))), "little")
    for step, mask in enumerate(masks):
        every |= (numbers & mask) << step
    return every.to_bytes(size * len(element), "little")[: count * len(element)]


@lru_cache(maxsize=32)
def _layout(element: bytes, size: int) -> tuple[int, Struct, Sequence[int]]:
    """Return elements without their numbers, how these lie where the varints begin, and masks.

    The masks are of the first, ... seven bits of the numbers.
    """
    # After the tag of `seconds`.
    starts = [at + 1 for at in range(len(element)) if element.startswith(_TIMESTAMP, at)]
    between = len(element) - 8 * len(starts)
    masks = []
    for step in range(5):
        bits = sum(0x7F << (7 * step + 8 * start) for start in starts)
        masks.append(int.from_bytes(bits.to_bytes(len(element), "little") * size, "little"))
    every = int.from_bytes(element * size, "little")
    return every, Struct(f"<{starts[0]}x" + ("Q" * len(starts) + f"{between}x") * size), masks


def _set_time(timestamp: Timestamp, time: int) -> None:
    timestamp.seconds, microseconds = divmod(time, _SECOND)
    timestamp.nanos = microseconds * 1000
