"""Appointments are encoded as protobuf would encode them."""

from datetime import UTC, datetime

import orjson
from appointments.v1 import appointment_pb2 as pb
from hypothesis import example, given
from hypothesis import strategies as st

from service import messages
from service.domain import Appointment, State
from service.postgres.rows import Stored
from service.rpc.appointment_encoding import encoded
from service.times import POSTGRES_EPOCH, microseconds

text = st.text() | st.text(min_size=120, max_size=140)
times = st.datetimes(timezones=st.just(UTC))
attributes = st.dictionaries(st.text(), st.none() | st.text() | st.lists(st.integers(0, 9)))
NOW = datetime(2026, 11, 26, tzinfo=UTC)


@given(
    st.builds(
        Appointment,
        organization_id=text,
        id=text,
        resource_id=text,
        additional_resource_ids=st.lists(text, max_size=3).map(tuple),
        start=times,
        end=times,
        title=text,
        attributes=attributes.map(lambda value: orjson.dumps(value).decode()),
        created_at=times,
        updated_at=times,
        hold_until=st.none() | times,
        state=st.sampled_from(State),
        version=st.integers(1, 2**31 - 1),
        revision=st.integers(1, 2**63 - 1),
        epoch=st.text(alphabet="0123456789abcdef", max_size=8),
    )
)
@example(
    Appointment(
        organization_id="o",
        id="i",
        resource_id="",
        additional_resource_ids=(),
        start=datetime(1970, 1, 1, tzinfo=UTC),
        end=datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        title="",
        attributes="{}",
        created_at=NOW,
        updated_at=NOW,
        hold_until=None,
        state=State.ACTIVE,
        version=1,
        revision=1,
        epoch="",
    )
)
def test_it_is_what_protobuf_reads(appointment: Appointment) -> None:
    found = stored(appointment)

    read = pb.Appointment.FromString(encoded(found))

    assert found.appointment == appointment
    # Equal messages may differ in which fields are present.
    assert read.ListFields() == messages.appointment(appointment).ListFields()
    assert read == messages.appointment(appointment)


def stored(appointment: Appointment) -> Stored:
    """Return an appointment as it comes from PostgreSQL."""
    row = (
        appointment.id.encode(),
        appointment.resource_id.encode(),
        [one.encode() for one in appointment.additional_resource_ids] or None,
        raw(appointment.start),
        raw(appointment.end),
        appointment.title.encode(),
        appointment.attributes.encode(),
        raw(appointment.created_at),
        raw(appointment.updated_at),
        None if appointment.hold_until is None else raw(appointment.hold_until),
        appointment.state.value.encode(),
        appointment.version,
        appointment.revision,
    )
    return Stored(appointment.organization_id, row, appointment.state, appointment.epoch)


def raw(time: datetime) -> int:
    return microseconds(time) - POSTGRES_EPOCH
