"""The wire format of protobuf, for responses that would take long to build as messages."""

from dataclasses import dataclass

_NUMBERS = (1 << 64) - 1
_FEW = 1 << 14


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A serialized response."""

    content: bytes

    def SerializeToString(self) -> bytes:
        return self.content


def tag(field: int) -> bytes:
    """Return the tag of a field that has a length: a string, or a message."""
    return varint(field << 3 | 2)


class LengthTags(dict[int, bytes]):
    """The tag of a field together with a length, by length."""

    def __init__(self, field: int) -> None:
        self._tag = tag(field)

    def __missing__(self, length: int) -> bytes:
        found = self[length] = self._tag + varint(length)
        return found


def varint_tag(field: int) -> bytes:
    """Return the tag of a field that is a varint: an integer, or an enum."""
    return varint(field << 3)


def varint(number: int) -> bytes:
    """Return an int64 or uint64 as a varint."""
    if 0 <= number < _FEW:
        return _SHORT[number]
    return _varint(number)


def _varint(number: int) -> bytes:
    number &= _NUMBERS
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_SHORT = tuple(map(_varint, range(_FEW)))


def with_length(content: bytes) -> bytes:
    return varint(len(content)) + content
