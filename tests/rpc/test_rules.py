"""Unit tests of the validation rules: their messages, field paths and results."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidFields
from service.rules import (
    MAX_ATTRIBUTES_BYTES,
    MAX_ATTRIBUTES_DEPTH,
    MAX_DURATION,
    Violations,
    check_fields,
    check_range,
    read_attributes,
    read_time,
)

START = datetime(2030, 1, 7, 8, tzinfo=UTC)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


def checked(message: Any) -> Violations:
    violations: Violations = []
    check_fields(message, "of.", violations)
    return violations


def read(**fields: Any) -> tuple[str, Violations]:
    struct = Struct()
    struct.update(fields)
    return read_struct(struct)


def read_struct(struct: Struct) -> tuple[str, Violations]:
    violations: Violations = []
    return read_attributes(struct, "attributes", violations), violations


def nested(depth: int) -> dict[str, Any]:
    """Return nested objects with this number of levels."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


class TestFields:
    @pytest.mark.parametrize(
        ("field", "longest"), [("id", 256), ("resource_id", 256), ("title", 1024)]
    )
    def test_a_string_may_have_so_many_characters(self, field: str, longest: int) -> None:
        """Characters, not bytes."""
        fitting = pb.Appointment(id="a", organization_id="o")
        setattr(fitting, field, "é" * longest)
        assert checked(fitting) == []
        setattr(fitting, field, "é" * (longest + 1))
        assert checked(fitting) == [(f"of.{field}", f"must have at most {longest:,} characters")]

    def test_one_of_some_values_may_be_absent(self) -> None:
        for value in ("", "start", "revision"):
            assert checked(rpc.ListAppointmentsRequest(order_by=value)) == []
        found = checked(rpc.ListAppointmentsRequest(order_by="id"))
        assert found == [("of.order_by", "must be start or revision")]

    def test_a_required_one_that_is_empty_or_absent_is_named(self) -> None:
        assert checked(rpc.GetAppointmentRequest(organization_id="o")) == [("of.id", "is required")]

    def test_an_optional_one_may_be_absent_but_not_empty(self) -> None:
        request = rpc.GetAppointmentRequest(id="a")
        assert checked(request) == []
        request.organization_id = ""
        assert checked(request) == [
            ("of.organization_id", "must not be empty; leave it out instead")
        ]

    @pytest.mark.parametrize("character", ["\0", "\n", "\x1f", "\x7f", "\x80", "\x9f"])
    def test_control_characters_are_refused(self, character: str) -> None:
        message = pb.Appointment(id="a", organization_id="o", title=f"x{character}y")
        assert checked(message) == [("of.title", "must not contain control characters")]

    @pytest.mark.parametrize("text", ["\xa0", "\xad", "\u200b", "\u2028", "\u202e", "\ufeff", "🗓"])
    def test_other_characters_that_do_not_print_are_kept(self, text: str) -> None:
        assert checked(pb.Appointment(id="a", organization_id="o", title=text)) == []

    @pytest.mark.parametrize(
        ("size", "said"), [(-1, "must be at least 0"), (0, ""), (1000, ""), (1001, "at most 1,000")]
    )
    def test_a_number_has_its_bounds(self, size: int, said: str) -> None:
        found = checked(rpc.ListAppointmentsRequest(page_size=size))
        assert [field for field, _ in found] == (["of.page_size"] if said else [])
        assert all(said in why for _, why in found)

    def test_a_list_has_so_many_elements(self) -> None:
        item = rpc.BatchUpsertAppointmentsRequest.Item()
        assert checked(rpc.BatchUpsertAppointmentsRequest(requests=[item] * 1000)) == []
        with pytest.raises(InvalidFields) as raised:
            checked(rpc.BatchUpsertAppointmentsRequest(requests=[item] * 1001))
        assert raised.value.violations == [("of.requests", "must have at most 1,000 elements")]

    def test_every_broken_one_is_named(self) -> None:
        message = pb.Appointment(id="x" * 257, title="\n" * 1025, etag="\n")
        named = [field for field, _ in checked(message)]
        assert named == ["of.id", "of.title", "of.title", "of.etag"]

    def test_messages_inside_are_not_entered(self) -> None:
        request = rpc.UpsertAppointmentRequest(appointment=pb.Appointment(id="x" * 257))
        assert checked(request) == []


class TestTimes:
    def read(self, timestamp: Timestamp | None, **options: bool) -> tuple[Any, Violations]:
        violations: Violations = []
        message = pb.Appointment(start=timestamp)
        return read_time(message, "start", "of.", violations, **options), violations

    @pytest.mark.parametrize("time", [FIRST, START, LAST])
    def test_the_years_that_rfc_3339_knows(self, time: datetime) -> None:
        timestamp = Timestamp()
        timestamp.FromDatetime(time)
        assert self.read(timestamp) == (time, [])

    @pytest.mark.parametrize(
        ("seconds", "nanos"),
        [
            (int(FIRST.timestamp()) - 1, 0),
            (int(LAST.timestamp()) + 1, 0),
            (0, -1),
            (0, 1_000_000_000),
        ],
    )
    def test_no_others(self, seconds: int, nanos: int) -> None:
        found, violations = self.read(Timestamp(seconds=seconds, nanos=nanos))
        assert found is None
        assert violations == [("of.start", "must be a time in the years 1 to 9999")]

    def test_parts_of_a_microsecond_are_cut_off(self) -> None:
        found, _ = self.read(Timestamp(seconds=int(START.timestamp()), nanos=1_999))
        assert found == START + timedelta(microseconds=1)
        found, _ = self.read(Timestamp(seconds=-1, nanos=999_999_999))
        assert found == datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)

    def test_an_absent_one_is_none_unless_it_is_required(self) -> None:
        assert self.read(None) == (None, [])
        assert self.read(None, required=True) == (None, [("of.start", "is required")])


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (START + timedelta(microseconds=1), ""),
        (START, "must be after start"),
        (START - timedelta(days=1), "must be after start"),
        (START + MAX_DURATION, ""),
        (
            START + MAX_DURATION + timedelta(microseconds=1),
            "must be at most 3,653 days after start",
        ),
        (None, ""),
    ],
)
def test_a_range_ends_after_its_start_and_within_ten_years(end: datetime | None, said: str) -> None:
    violations: Violations = []
    check_range(START, end, "of.", violations)
    assert violations == ([("of.end", said)] if said else [])
    check_range(None, end, "of.", violations := [])
    assert violations == []


class TestAttributes:
    def test_the_text_is_compact_with_sorted_keys_at_every_level(self) -> None:
        text, violations = read(b={"d": 1, "c": [{"y": None, "x": True}]}, a="ü")
        assert text == '{"a":"ü","b":{"c":[{"x":true,"y":null}],"d":1}}'
        assert violations == []
        assert read() == ("{}", [])

    @pytest.mark.parametrize(
        ("number", "text"),
        [
            (1.0, "1"),
            (-3.0, "-3"),
            (0.0, "0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (2.0**53 - 1, "9007199254740991"),
            (2.0**53, "9007199254740992.0"),
            (1e300, "1e+300"),
        ],
    )
    def test_a_number_is_written_as_short_as_it_can_be(self, number: float, text: str) -> None:
        found, violations = read(n=number)
        assert (found, violations) == (f'{{"n":{text}}}', [])
        assert math.copysign(1, orjson.loads(found)["n"]) == math.copysign(1, number)

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_numbers_that_json_has_not_are_refused(self, number: float) -> None:
        text, violations = read(list=[{"n": number}])
        assert (text, [field for field, _ in violations]) == ("{}", ["attributes"])
        assert "NaN or infinities" in violations[0][1]

    @pytest.mark.parametrize("fields", [{"a\0": 1}, {"a": "\0"}, {"a": ["x", "\0"]}])
    def test_nul_is_refused_wherever_it_is(self, fields: dict[str, Any]) -> None:
        text, violations = read(**fields)
        assert text == "{}"
        assert violations == [("attributes", "must not contain the NUL character")]

    def test_a_value_without_a_kind_is_refused(self) -> None:
        for value in (Value(), Value(list_value=ListValue(values=[Value()]))):
            _, violations = read_struct(Struct(fields={"a": value}))
            assert "without a kind" in violations[0][1]

    def test_it_may_be_so_many_levels_deep(self) -> None:
        deepest = nested(MAX_ATTRIBUTES_DEPTH)
        assert read(**deepest) == (orjson.dumps(deepest).decode(), [])
        said = f"must be at most {MAX_ATTRIBUTES_DEPTH} levels deep"
        assert read(**nested(MAX_ATTRIBUTES_DEPTH + 1)) == ("{}", [("attributes", said)])
        lists: Any = []
        for _ in range(MAX_ATTRIBUTES_DEPTH - 2):
            lists = [lists]
        assert read(a=lists)[1] == []
        assert read(a=[lists])[1] == [("attributes", said)]

    def test_it_may_have_so_many_bytes_as_text(self) -> None:
        fitting = MAX_ATTRIBUTES_BYTES - len('{"a":""}')
        assert read(a="x" * fitting)[1] == []
        assert read(a="x" * (fitting - 1) + "é")[1] == [
            ("attributes", f"must be at most {MAX_ATTRIBUTES_BYTES:,} bytes as JSON text")
        ]

    @given(
        st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(
                    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5
                ),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=5,
            ),
            max_size=5,
        )
    )
    def test_equal_attributes_have_equal_text_which_says_the_same(
        self, fields: dict[str, Any]
    ) -> None:
        """The text decides the digest of an idempotency key, and UNCHANGED."""
        text, violations = read(**fields)
        assert violations == []
        assert orjson.loads(text) == fields
        assert read(**dict(reversed(fields.items()))) == (text, [])
