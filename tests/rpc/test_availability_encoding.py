"""Availability is encoded as protobuf would encode it."""

from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import availability_pb2 as rpc
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.availability.query import Answer, Availability
from service.availability.ranges import Ranges
from service.rpc.availability_encoding import encoded

SECOND = 1_000_000
FIRST, LAST = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1
whole = st.integers(FIRST // SECOND, LAST // SECOND).map(lambda second: second * SECOND)
usual = st.integers(2**28 - 10, 2**35 + 10).map(lambda second: second * SECOND)
times = st.integers(FIRST, LAST)


@st.composite
def in_order(draw: st.DrawFn) -> list[int]:
    kind = draw(st.sampled_from([whole, usual, times]))
    return sorted(draw(st.sets(kind, max_size=600)))


@st.composite
def ranges(draw: st.DrawFn) -> Ranges:
    found = draw(in_order())
    even = len(found) // 2 * 2
    return Ranges(found[0:even:2], found[1:even:2])


def edges(*seconds: int) -> Ranges:
    return Ranges([second * SECOND for second in seconds[::2]], [s * SECOND for s in seconds[1::2]])


@settings(deadline=None)
@given(
    busy=ranges(),
    free=ranges(),
    starts=in_order(),
    resource_id=st.none() | st.text(),
)
@example(busy=edges(2**28 - 1, 2**28), free=edges(2**28, 2**35 - 1), starts=[], resource_id="")
@example(busy=edges(-1, 0), free=edges(2**35 - 1, 2**35), starts=[-1, 0], resource_id=None)
@example(busy=edges(), free=edges(), starts=[2**28 * SECOND, (2**35 - 1) * SECOND], resource_id="")
@example(busy=edges(), free=edges(*range(2**31, 2**31 + 10_000)), starts=[], resource_id="long")
@example(busy=Ranges([0], [1]), free=edges(*range(2**31, 2**31 + 1024)), starts=[], resource_id="x")
def test_it_is_what_protobuf_reads(
    busy: Ranges, free: Ranges, starts: list[int], resource_id: str | None
) -> None:
    many = len(starts)
    slices = [(0, many // 3), (many // 3, many // 2), (many // 2, many)]
    found = Availability(resource_id=resource_id, busy=busy, free=free, starts=slices)
    answer = Answer(found=[found, found], candidates=starts, more_starts=False)

    read = rpc.QueryAvailabilityResponse.FromString(encoded(answer))

    one = rpc.QueryAvailabilityResponse.Resource(
        resource_id=resource_id,
        busy=_messages(busy),
        free=_messages(free),
        starts=[_timestamp(start) for start in starts],
    )
    assert read == rpc.QueryAvailabilityResponse(resources=[one, one])


def _messages(ranges: Ranges) -> list[pb.TimeRange]:
    return [
        pb.TimeRange(start=_timestamp(start), end=_timestamp(end))
        for start, end in zip(ranges.starts, ranges.ends, strict=True)
    ]


def _timestamp(time: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromMicroseconds(time)
    return timestamp
