"""The wire format of protobuf, for responses that would take long to build as messages."""

from dataclasses import dataclass

_SHORT = tuple(bytes((number,)) for number in range(1 << 7))
_NUMBERS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A serialized response."""

    content: bytes

    def SerializeToString(self) -> bytes:
        return self.content


def tag(field: int) -> bytes:
    """Return what precedes a value with a length: a text, or a message."""
    return varint(field << 3 | 2)


def number_tag(field: int) -> bytes:
    """Return what precedes a varint."""
    return varint(field << 3)


def varint(number: int) -> bytes:
    """Return an integer of 64 bits, or an unsigned one."""
    if 0 <= number < 1 << 7:
        return _SHORT[number]
    number &= _NUMBERS
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def with_length(content: bytes) -> bytes:
    return varint(len(content)) + content
