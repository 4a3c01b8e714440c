"""Every validation rule: each violation is reported with its field, all together."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from service import messages
from tests.api import Organization, appointment, at, refusal

DAY = 24 * 60

# A value for each kind of field, and for fields that depend on others.
VALUES: dict[str, object] = {
    "start": at(5),
    "end": at(45),
    "additional_resource_ids": ["nurse", "anna"],
    "hold_until": messages.timestamp(datetime.now(UTC) + timedelta(hours=2)),
}
VALUES_BY_TYPE: dict[object, object] = {
    "google.protobuf.Timestamp": at(10),
    "google.protobuf.Struct": Struct(fields={"a": Value(number_value=1)}),
    FieldDescriptor.TYPE_STRING: "other",
    FieldDescriptor.TYPE_BOOL: True,
    FieldDescriptor.TYPE_INT32: 7,
    FieldDescriptor.TYPE_INT64: 7,
    FieldDescriptor.TYPE_DOUBLE: 0.5,
}


def is_content(field: FieldDescriptor) -> bool:
    """Return whether callers set the field and it is neither a key nor a condition."""
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    output_only = field_behavior_pb2.OUTPUT_ONLY in behaviors
    return not output_only and field.name not in {"organization_id", "id", "etag"}


@pytest.mark.parametrize(
    "name", [field.name for field in pb.Appointment.DESCRIPTOR.fields if is_content(field)]
)
def test_every_field_is_stored_returned_and_compared(org: Organization, name: str) -> None:
    """A new field must pass all layers: protos, domain, functions, rows and back."""
    field = pb.Appointment.DESCRIPTOR.fields_by_name[name]
    kind = field.message_type.full_name if field.message_type else field.type
    value = VALUES.get(name, VALUES_BY_TYPE.get(kind))
    wanted = appointment(org.id, "a", 0, 30)
    if name == "hold_until":  # only a held appointment can be held for longer
        wanted.hold_until.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    request = rpc.UpsertAppointmentRequest(appointment=wanted)
    org.stub.UpsertAppointment(request)
    request.appointment.MergeFrom(pb.Appointment(**{name: value}))  # type: ignore[arg-type]

    written = org.stub.UpsertAppointment(request)
    assert written.outcome == pb.UPDATED
    assert getattr(written.appointment, name) == value
    assert org.stub.UpsertAppointment(request).outcome == pb.UNCHANGED
    assert org.get("a") == written.appointment
    [_, entry] = org.history("a").entries
    assert entry.appointment == written.appointment


def upsert_violations(org: Organization, wanted: pb.Appointment, **options: Any) -> dict[str, str]:
    request = rpc.UpsertAppointmentRequest(appointment=wanted, **options)
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(request)
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
    )
    return refused.fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("organization_id", ""),
        ("organization_id", "o" * 129),
        ("organization_id", "a\nb"),
        ("resource_id", "r" * 257),
        ("resource_id", "a\x00b"),
        ("id", ""),
        ("id", "i" * 257),
        ("id", "a\x7fb"),
        ("id", "a\x85b"),
        ("title", "t" * 1025),
        ("title", "a\tb"),
        ("etag", "e" * 65),
    ],
)
def test_a_string_that_breaks_its_rule_is_named(org: Organization, field: str, value: str) -> None:
    wanted = appointment(org.id, "a", 0, 30)
    setattr(wanted, field, value)
    assert set(upsert_violations(org, wanted)) == {f"appointment.{field}"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resource_id", "\U0001f600" * 256),
        ("id", "\U0001f600" * 256),
        ("title", "\U0001f600" * 1024),
        ("id", "../a b%2F?#\\\"'"),
        ("title", "\u202e\u200b\ufeff\ufffe"),
    ],
)
def test_a_string_at_its_limit_comes_back(org: Organization, field: str, value: str) -> None:
    wanted = appointment(org.id, "a", 0, 30)
    setattr(wanted, field, value)
    stored = org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=wanted))
    assert getattr(stored.appointment, field) == value
    assert org.get(stored.appointment.id) == stored.appointment


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"start": None}, "start"),
        ({"end": None}, "end"),
        ({"end": at(0)}, "end"),
        ({"end": at(-1)}, "end"),
        ({"end": at(3653 * DAY + 0.001)}, "end"),
        ({"start": Timestamp(seconds=-62_135_596_801)}, "start"),
        ({"end": Timestamp(seconds=253_402_300_800)}, "end"),
        ({"end": Timestamp(seconds=2**63 - 1)}, "end"),
        ({"start": Timestamp(seconds=0, nanos=-1)}, "start"),
        ({"start": Timestamp(seconds=0, nanos=1_000_000_000)}, "start"),
        ({"created_at": Timestamp(seconds=-(2**62))}, "created_at"),
        ({"updated_at": Timestamp(seconds=2**62)}, "updated_at"),
    ],
)
def test_a_time_that_breaks_its_rule_is_named(
    org: Organization, change: dict[str, Timestamp | None], field: str
) -> None:
    wanted = appointment(org.id, "a", 0, 30)
    for name, value in change.items():
        wanted.ClearField(name)  # type: ignore[arg-type]
        if value is not None:
            getattr(wanted, name).CopyFrom(value)
    assert set(upsert_violations(org, wanted)) == {f"appointment.{field}"}


def test_the_longest_range_is_taken(org: Organization) -> None:
    assert org.upsert("a", 0, 3653 * DAY).outcome == pb.CREATED


def test_ends_in_the_same_microsecond_are_an_empty_range(org: Organization) -> None:
    wanted = appointment(org.id, "a", 0, 0)
    wanted.end.nanos = 999
    assert set(upsert_violations(org, wanted)) == {"appointment.end"}


def nested(levels: int) -> Struct:
    value: object = 1
    for _ in range(levels):
        value = {"a": value}
    struct = Struct()
    struct.update(value)  # type: ignore[arg-type]
    return struct


def struct_of(value: Value) -> Struct:
    return Struct(fields={"a": value})


@pytest.mark.parametrize(
    "attributes",
    [
        struct_of(Value(number_value=math.nan)),
        struct_of(Value(number_value=math.inf)),
        struct_of(Value()),
        struct_of(Value(string_value="a\x00b")),
        Struct(fields={"a\x00b": Value(bool_value=True)}),
        struct_of(Value(string_value="x" * (16 * 1024 - 7))),
        nested(31),
    ],
    ids=["NaN", "infinity", "no kind", "NUL", "NUL in a name", "17 KiB", "31 levels"],
)
def test_attributes_that_break_a_rule_are_named(org: Organization, attributes: Struct) -> None:
    wanted = appointment(org.id, "a", 0, 30)
    wanted.attributes.CopyFrom(attributes)
    assert set(upsert_violations(org, wanted)) == {"appointment.attributes"}


@pytest.mark.parametrize(
    "attributes",
    [struct_of(Value(string_value="x" * (16 * 1024 - 8))), nested(30)],
    ids=["16 KiB", "30 levels"],
)
def test_attributes_at_their_limits_are_taken(org: Organization, attributes: Struct) -> None:
    wanted = appointment(org.id, "a", 0, 30)
    wanted.attributes.CopyFrom(attributes)
    org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=wanted))
    assert org.get("a").attributes == attributes


def test_all_violations_are_named_at_once(org: Organization) -> None:
    wanted = appointment(org.id, "", 30, 0, title="a\nb", resource_id="r" * 300)
    wanted.attributes.CopyFrom(nested(31))
    wanted.created_at.seconds = 2**62
    violations = upsert_violations(org, wanted, idempotency_key="k" * 257, etag="e" * 65)
    assert set(violations) == {
        "etag",
        "idempotency_key",
        "appointment.id",
        "appointment.end",
        "appointment.title",
        "appointment.resource_id",
        "appointment.attributes",
        "appointment.created_at",
    }
    assert org.changes() == []


def test_an_upsert_without_appointment_is_refused(org: Organization) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest())
    assert set(refusal(caught.value).fields) == {"appointment"}


FROM_LATER: dict[str, Any] = {"from": at(1)}
READS: list[tuple[str, Message, set[str]]] = [
    ("GetAppointment", rpc.GetAppointmentRequest(), {"id"}),
    ("GetAppointment", rpc.GetAppointmentRequest(id="i" * 257), {"id"}),
    ("GetAppointment", rpc.GetAppointmentRequest(id="a", organization_id=""), {"organization_id"}),
    ("GetAppointment", rpc.GetAppointmentRequest(id="a", as_of_revision=-1), {"as_of_revision"}),
    ("GetAppointment", rpc.GetAppointmentRequest(id="a", as_of_revision=9), {"as_of_revision"}),
    ("GetAppointment", rpc.GetAppointmentRequest(id="a", min_revision=9), {"min_revision"}),
    (
        "GetAppointment",
        rpc.GetAppointmentRequest(id="a", as_of_time=Timestamp(seconds=2**62)),
        {"as_of_time"},
    ),
    (
        "GetAppointment",
        rpc.GetAppointmentRequest(id="a", as_of_revision=0, as_of_time=at(0)),
        {"as_of_time"},
    ),
    ("ListAppointments", rpc.ListAppointmentsRequest(page_size=-1), {"page_size"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(page_size=1001), {"page_size"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(page_token="x"), {"page_token"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(min_revision=9), {"min_revision"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(as_of_revision=9), {"as_of_revision"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(resource_id="r" * 257), {"resource_id"}),
    ("ListAppointments", rpc.ListAppointmentsRequest(to=at(0), **FROM_LATER), {"to"}),
    ("ListAppointmentHistory", rpc.ListAppointmentHistoryRequest(), {"id"}),
    (
        "ListAppointmentHistory",
        rpc.ListAppointmentHistoryRequest(id="a", page_size=1001),
        {"page_size"},
    ),
    ("ListChanges", rpc.ListChangesRequest(after_revision=-1), {"after_revision"}),
    ("ListChanges", rpc.ListChangesRequest(page_token="é"), {"page_token"}),
    ("CancelAppointment", rpc.CancelAppointmentRequest(), {"id"}),
    (
        "CancelAppointment",
        rpc.CancelAppointmentRequest(id="a", updated_at=Timestamp(seconds=2**62)),
        {"updated_at"},
    ),
    (
        "CancelAppointment",
        rpc.CancelAppointmentRequest(id="a", idempotency_key="k" * 257),
        {"idempotency_key"},
    ),
]


@pytest.mark.parametrize(("method", "request_message", "fields"), READS)
def test_a_request_that_breaks_a_rule_is_refused(
    org: Organization, method: str, request_message: Any, fields: set[str]
) -> None:
    if not request_message.HasField("organization_id"):
        request_message.organization_id = org.id
    with pytest.raises(grpc.RpcError) as caught:
        getattr(org.stub, method)(request_message)
    refused = refusal(caught.value)
    assert refused.reason == "INVALID_FIELD", refused
    assert set(refused.fields) == fields


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-actor", "a" * 257)],
        [("x-actor-bin", "é".encode() * 257)],
        [("x-actor-bin", b"\xff")],
        [("x-actor-bin", b"a\n")],
        [("x-actor", "a"), ("x-actor", "a")],
        [("x-actor", "a"), ("x-actor-bin", b"a")],
    ],
    ids=str,
)
def test_an_actor_that_breaks_a_rule_is_refused(
    org: Organization, metadata: list[tuple[str, str | bytes]]
) -> None:
    request = rpc.UpsertAppointmentRequest(appointment=appointment(org.id, "a", 0, 30))
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(request, metadata=tuple(metadata))
    assert set(refusal(caught.value).fields) == {"x-actor"}
    assert org.changes() == []


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x12\x02\xff\xfe"])
def test_a_message_that_cannot_be_read_is_the_callers_to_mend(
    channel: grpc.Channel, data: bytes
) -> None:
    call: Any = channel.unary_unary("/appointments.v1.AppointmentService/UpsertAppointment")
    with pytest.raises(grpc.RpcError) as caught:
        call(data)
    refused = refusal(caught.value)
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_REQUEST",
    )


def test_a_message_that_is_too_large_is_refused(org: Organization) -> None:
    wanted = appointment(org.id, "a", 0, 30, title="t" * (5 * 1024 * 1024))
    with pytest.raises(grpc.RpcError) as caught:
        org.stub.UpsertAppointment(rpc.UpsertAppointmentRequest(appointment=wanted))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert org.changes() == []
