"""Messages as JSON, compared with json_format."""

import json

import orjson
import pytest
from appointments.v1.appointment_pb2 import Appointment, HistoryEntry, Outcome
from appointments.v1.appointment_service_pb2 import (
    BatchUpsertAppointmentsResponse,
    ListAppointmentsResponse,
    ListChangesResponse,
)
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from public_json.rendering import MessageRenderer


def _rendered(message: Message) -> object:
    renderer = MessageRenderer(message.DESCRIPTOR)  # type: ignore[arg-type]
    return orjson.loads(orjson.dumps(renderer.render(message)))


def _expected(message: Message) -> object:
    return json.loads(json_format.MessageToJson(message, always_print_fields_with_no_presence=True))


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_TIMES = st.builds(
    Timestamp,
    seconds=st.integers(-62_135_596_800, 253_402_300_799),
    nanos=st.integers(0, 999_999).map(lambda micros: micros * 1000)
    | st.integers(0, 999).map(lambda millis: millis * 1_000_000)
    | st.just(0),
)
_NUMBERS = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70).map(float)
    | st.sampled_from([0.0, -0.0, 2.0**63, -(2.0**63), 1e308, 5e-324])
)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def _appointments(draw: st.DrawFn) -> Appointment:
    message = Appointment(
        organization_id=draw(st.none() | _TEXTS),
        resource_id=draw(_TEXTS),
        id=draw(st.none() | _TEXTS),
        start=draw(st.none() | _TIMES),
        end=draw(st.none() | _TIMES),
        title=draw(_TEXTS),
        created_at=draw(st.none() | _TIMES),
        version=draw(st.integers(-(2**31), 2**31 - 1)),
        revision=draw(st.integers(-(2**63), 2**63 - 1)),
    )
    message.state = draw(st.sampled_from([0, 1, 2, 9]))  # type: ignore[assignment]
    attributes = draw(st.none() | st.dictionaries(_TEXTS, _JSON, max_size=4))
    if attributes is not None:
        message.attributes.update(attributes)
    return message


@given(_appointments())
def test_an_appointment_is_printed_as_json_format_prints_it(message: Appointment) -> None:
    assert _rendered(message) == _expected(message)


@pytest.mark.parametrize(
    "message",
    [
        ListAppointmentsResponse(),
        ListAppointmentsResponse(appointments=[Appointment(), Appointment(id="a")], revision=5),
        ListChangesResponse(entries=[HistoryEntry(change=HistoryEntry.UPDATED)]),
    ],
)
def test_answers_are_printed_as_json_format_prints_them(message: Message) -> None:
    assert _rendered(message) == _expected(message)


def test_an_absent_optional_enum_is_not_printed() -> None:
    renderer = MessageRenderer(
        BatchUpsertAppointmentsResponse.DESCRIPTOR, {"google.rpc.Status": lambda _: "problem"}
    )
    message = BatchUpsertAppointmentsResponse()
    message.results.add(outcome=Outcome.STALE)
    message.results.add().error.SetInParent()
    assert renderer.render(message) == {"results": [{"outcome": "STALE"}, {"error": "problem"}]}


def test_names_of_free_json_are_in_order() -> None:
    message = Appointment()
    message.attributes.update({"b": 1, "a": {"d": 1, "c": 1}})
    rendered = MessageRenderer(Appointment.DESCRIPTOR).render(message)
    assert json.dumps(rendered["attributes"]) == '{"a": {"c": 1, "d": 1}, "b": 1}'
