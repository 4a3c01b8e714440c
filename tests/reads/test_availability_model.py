"""The service answers as the model does, and books what it offered."""

import uuid
from collections.abc import Iterable

from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import availability_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api import TIMEOUT, batch_request
from tests.availability import model
from tests.availability.model import Found, Question, Span
from tests.availability.questions import calendars, questions


def request_of(
    organization: str, question: Question, resources: int
) -> rpc.QueryAvailabilityRequest:
    request = rpc.QueryAvailabilityRequest(
        organization_id=organization,
        to=_time(question.end),
        resource_id=[f"r{number}" for number in range(resources)],
        opening_hours=[hours.text() for hours in question.opening_hours],
        time_zone=question.zone,
        buffer_before=Duration(seconds=question.buffer_before * 60),
        buffer_after=Duration(seconds=question.buffer_after * 60),
    )
    if question.together:
        request.match = rpc.QueryAvailabilityRequest.ALL
    getattr(request, "from").CopyFrom(_time(question.start))
    for name, minutes in (
        ("duration", question.duration),
        ("granularity", question.granularity),
    ):
        if minutes is not None:
            getattr(request, name).CopyFrom(Duration(seconds=minutes * 60))
    return request


def book(
    stub: AppointmentServiceStub, organization: str, ranges: Iterable[tuple[str, Span]]
) -> None:
    """Book ranges of resources. Every one must be booked."""
    wanted = [
        pb.Appointment(
            organization_id=organization,
            id=uuid.uuid4().hex,
            resource_id=resource,
            start=_time(start),
            end=_time(end),
        )
        for resource, (start, end) in ranges
    ]
    for first in range(0, len(wanted), 1000):
        request = batch_request(wanted[first : first + 1000])
        response = stub.BatchUpsertAppointments(request, timeout=TIMEOUT)
        outcomes = [result.outcome for result in response.results]
        assert outcomes == [pb.CREATED] * len(request.requests), response


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_availability_is_as_in_the_model_and_can_be_booked(
    stub: AppointmentServiceStub, data: st.DataObject
) -> None:
    question = data.draw(questions())
    calendar = data.draw(calendars(question))
    organization = f"availability-{uuid.uuid4()}"
    stored = [(f"r{number}", span) for number, spans in enumerate(calendar) for span in spans]
    if stored:
        book(stub, organization, stored)

    response = stub.QueryAvailability(
        request_of(organization, question, len(calendar)), timeout=TIMEOUT
    )

    expected, expected_more = model.answer(question, calendar)
    assert [_found(each) for each in response.resources] == expected
    assert response.more_starts == expected_more
    length = question.duration or question.granularity or 1
    for number, found in enumerate(response.resources):
        offers = _apart([_minute(start) for start in found.starts], length) or [
            (_minute(each.start), _minute(each.end)) for each in found.free
        ]
        ids = [f"r{each}" for each in range(len(calendar))] if question.together else [f"r{number}"]
        for id in ids:
            if offers:
                book(stub, organization, [(id, offer) for offer in offers])


def _apart(starts: list[int], length: int) -> list[Span]:
    """Return offers that do not overlap, the first ones."""
    offers: list[Span] = []
    for start in starts:
        if not offers or start >= offers[-1][1]:
            offers.append((start, start + length))
    return offers


def _found(resource: rpc.QueryAvailabilityResponse.Resource) -> Found:
    def spans(ranges: Iterable[pb.TimeRange]) -> list[Span]:
        return [(_minute(each.start), _minute(each.end)) for each in ranges]

    return Found(spans(resource.busy), spans(resource.free), list(map(_minute, resource.starts)))


def _time(minute: int) -> Timestamp:
    return Timestamp(seconds=minute * 60)


def _minute(time: Timestamp) -> int:
    assert (time.nanos, time.seconds % 60) == (0, 0)
    return time.seconds // 60
