"""JSON objects to messages."""

import json
from typing import Any

import pytest
from appointments.v1.appointment_pb2 import Appointment
from appointments.v1.appointment_service_pb2 import BatchUpsertAppointmentsRequest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.problems import Errors
from gateway.transcoding.json_reader import MessageReader
from gateway.transcoding.strict_json import parse_json
from gateway.transcoding.values import MAX_ATTRIBUTES_DEPTH

READER = MessageReader(Appointment.DESCRIPTOR)
BATCH_READER = MessageReader(BatchUpsertAppointmentsRequest.DESCRIPTOR)


def _faults(value: object, reader: MessageReader = READER) -> dict[str, str]:
    errors: Errors = []
    assert reader.read(value, "", errors) is None
    return {error.field: error.detail for error in errors}


def _read(value: object, reader: MessageReader = READER) -> Any:
    errors: Errors = []
    message = reader.read(value, "", errors)
    assert not errors
    return message


def test_all_fields_are_read() -> None:
    message = _read(
        {
            "organizationId": "o",
            "resourceId": "r",
            "id": "i",
            "start": "2026-01-01T00:00:00Z",
            "end": "2026-01-01 01:00",
            "title": "t",
            "attributes": {"a": [1, {"b": None}]},
            "createdAt": "2026-01-01T00:00:00.5Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "etag": "7",
        }
    )
    expected = Appointment(organization_id="o", resource_id="r", id="i", title="t", etag="7")
    expected.start.FromJsonString("2026-01-01T00:00:00Z")
    expected.end.FromJsonString("2026-01-01T01:00:00Z")
    expected.created_at.FromJsonString("2026-01-01T00:00:00.5Z")
    expected.updated_at.FromJsonString("2026-01-01T00:00:00Z")
    expected.attributes.update({"a": [1, {"b": None}]})
    assert message == expected


def test_absent_and_empty_are_told_apart() -> None:
    assert not _read({}).HasField("organization_id")
    assert _read({"organizationId": ""}).HasField("organization_id")
    assert _read({"attributes": {}}).HasField("attributes")


@pytest.mark.parametrize(("written", "read"), [(7, "7"), (-7, "-7"), (2**70, str(2**70))])
def test_an_integer_as_id_is_its_decimal_text(written: int, read: str) -> None:
    assert _read({"id": written}).id == read


@pytest.mark.parametrize("written", [True, 7.0, 7.5, [], {}])
def test_nothing_else_is_an_id(written: object) -> None:
    assert _faults({"id": written}) == {"id": "must be a string or an integer"}


def test_an_integer_is_no_other_text() -> None:
    assert _faults({"resourceId": 7}) == {"resourceId": "must be a string"}


def test_what_the_service_sets_is_checked_and_dropped() -> None:
    assert _read({"state": "CANCELLED", "version": 3, "revision": "9"}) == Appointment()
    assert _faults({"state": "OPEN", "version": "x", "revision": []}) == {
        "state": "must be one of ACTIVE, CANCELLED, HELD, EXPIRED",
        "version": "must be an integer",
        "revision": "must be an integer",
    }


@pytest.mark.parametrize("written", [5, 5.0, "5", 2**63 - 1, str(-(2**63))])
def test_integers_of_64_bits(written: object) -> None:
    assert _read({"revision": written}) == Appointment()  # checked, and dropped


@pytest.mark.parametrize(
    "written", [True, 5.5, "5.0", " 5", "", 2**63, str(2**63), "\u0665", 1e300]
)
def test_nothing_else_is_an_integer(written: object) -> None:
    assert "revision" in _faults({"revision": written})


@pytest.mark.parametrize("written", [2**63, str(-(2**63) - 1), "9" * 20, 1e300])
def test_an_integer_that_is_too_large_is_called_so(written: object) -> None:
    assert _faults({"revision": written}) == {"revision": "must be an integer of 64 bits"}


def test_all_faults_are_told_with_their_paths() -> None:
    start = "2026-01-01T00:00:00Z"
    faults = _faults(
        {
            "requests": [
                {"appointment": {"start": start, "end": start}},
                {"appointment": {"title": 5, "start": "soon"}, "createOnly": "yes"},
                None,
                {"appointment": None, "createOnly": None, "etags": "x"},
                7,
                {"holdUntil": start},
            ],
            "validate_only": True,
            "atomically": False,
        },
        BATCH_READER,
    )
    assert faults == {
        "requests[1].appointment.title": "must be a string",
        "requests[1].appointment.start": faults["requests[1].appointment.start"],
        "requests[1].createOnly": "must be true or false",
        "requests[2]": "must not be null",
        "requests[3].appointment": "must not be null",
        "requests[3].createOnly": "must not be null; leave it out",
        "requests[3].etags": "is not a known field",
        "requests[4]": "must be an object",
        "requests[5].holdUntil": "is not a known field here; it belongs in"
        " requests[].appointment.holdUntil",
        "validate_only": "is not a known field; write validateOnly",
        "atomically": "is not a known field",
    }


@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_only_an_object_is_a_message(value: object) -> None:
    assert _faults(value) == {"": "must be an object"}


@pytest.mark.parametrize("text", ["a\0", "\ud800", "\udfff\ud800"])
def test_text_that_cannot_be_kept_is_refused(text: str) -> None:
    assert set(_faults({"title": text, "id": text})) == {"title", "id"}
    assert set(_faults({"attributes": {text: 1}})) == {"attributes"}
    assert set(_faults({"attributes": {"a": [text]}})) == {"attributes"}


def test_an_unknown_name_is_told_as_text_that_can_be_printed() -> None:
    assert _faults({"x\ud800": 1}) == {"x\ufffd": "is not a known field"}


def _nested(levels: int, kind: str) -> dict[str, Any]:
    value: Any = "leaf"
    for _ in range(levels - 1):
        value = [value] if kind == "array" else {"a": value}
    return {"a": value}


@pytest.mark.parametrize("kind", ["array", "object"])
def test_nesting_up_to_the_limit_survives_the_wire(kind: str) -> None:
    attributes = _nested(MAX_ATTRIBUTES_DEPTH, kind)
    message = _read({"requests": [{"appointment": {"attributes": attributes}}]}, BATCH_READER)
    again = BatchUpsertAppointmentsRequest.FromString(message.SerializeToString())
    assert json_format.MessageToDict(again.requests[0].appointment.attributes) == attributes


@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("levels", [MAX_ATTRIBUTES_DEPTH + 1, 300])
def test_deeper_nesting_is_refused(kind: str, levels: int) -> None:
    assert _faults({"attributes": _nested(levels, kind)}) == {
        "attributes": "must be at most 30 levels deep"
    }


_NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(_NAMES, _JSON, max_size=5))
def test_free_json_is_read_as_json_format_reads_it(attributes: dict[str, Any]) -> None:
    body = json.dumps({"attributes": attributes})
    assert _read(parse_json(body.encode())) == json_format.Parse(body, Appointment())
