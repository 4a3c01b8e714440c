"""The alternatives of a refused write are those of a model, and can be booked."""

import uuid
from typing import Any

from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api import Organization, at
from tests.availability import model
from tests.availability.model import Span

DAY = 24 * 60
WITHIN = 31 * DAY

_gaps = st.sampled_from([0, 1, 10, 30, 60, 500])
_lengths = st.sampled_from([1, 15, 30, 45, 60, 700])


@st.composite
def calendars(draw: st.DrawFn) -> list[Span]:
    """The appointments of a resource, in minutes of a morning, one after another."""
    spans: list[Span] = []
    time = draw(st.integers(-100, 10))
    for gap, length in draw(st.lists(st.tuples(_gaps, _lengths), min_size=1, max_size=8)):
        spans.append((time + gap, time + gap + length))
        time += gap + length
    # Until near the end of what is searched, so that little is found.
    if draw(st.booleans()):
        spans.append((time, WITHIN + draw(st.sampled_from([-1500, -30, -1, 0, 1, 30, 200]))))
    return spans


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_alternatives_are_as_in_the_model_and_can_be_booked(
    stub: AppointmentServiceStub, data: st.DataObject
) -> None:
    org = Organization(stub, f"alternatives-{uuid.uuid4()}")
    resources = {f"r{number}": data.draw(calendars()) for number in range(3)}
    stored: dict[str, tuple[str, Span]] = {}
    for resource, spans in resources.items():
        for start, end in spans:
            id = f"a{len(stored)}"
            stored[id] = resource, (start, end)
            org.upsert(id, start, end, resource_id=resource)
    org.upsert("cancelled", -3000, -2000, resource_id="r0")
    org.cancel("cancelled")
    # The wanted range overlaps one that is stored. Another one may be moved there.
    id, (resource, (start, end)) = data.draw(st.sampled_from(list(stored.items())))
    others = data.draw(st.sets(st.sampled_from(sorted(resources.keys() - {resource}))))
    start = data.draw(st.integers(max(start, end - 100), end - 1))
    length = data.draw(st.sampled_from([1, 10, 30, 60, 600]))
    movable: list[str | None] = [None, *(each for each in stored if each != id)]
    moved = data.draw(st.sampled_from(movable))
    most = data.draw(st.integers(0, 20))
    fields: dict[str, Any] = {
        "resource_id": resource,
        "additional_resource_ids": sorted(others),
        "validate_only": True,
    }

    refusal = org.refused(moved or "new", start, start + length, suggest=most, **fields)

    expected = model.alternatives(
        [span for id, (of, span) in stored.items() if id != moved and of in {resource, *others}],
        start,
        length,
        most,
        within=WITHIN,
    )
    found = [(_minute(each.start), _minute(each.end)) for each in refusal.alternatives]
    assert found == expected
    for each in found:
        booked = org.upsert(moved or "new", *each, **fields)
        if moved is None:
            assert booked.outcome == pb.CREATED
        else:
            is_there = not others and stored[moved] == (resource, each)
            assert booked.outcome == (pb.UNCHANGED if is_there else pb.UPDATED)


def _minute(time: Timestamp) -> int:
    minutes, rest = divmod(time.seconds - at(0).seconds, 60)
    assert (rest, time.nanos) == (0, 0)
    return minutes
