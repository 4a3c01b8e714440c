"""The requests of the model's writes."""

from collections.abc import Callable, Iterable
from typing import Any

from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import appointment_service_pb2 as rpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import at
from tests.writes.values import CONTENT_FIELDS, Write

# The time until which a hold lasts that lasts until a tick.
HeldUntil = Callable[[int], Timestamp]


def request_of(
    write: Write, tag: str, *, mask: str, organization: str, held_until: HeldUntil
) -> Any:
    """Return the request of a write with an etag.

    `mask` says how an update names its fields: `names`, `*`, or `absent` by what the message has.
    """
    request: Any
    if write.kind == "CANCEL":
        request = rpc.CancelAppointmentRequest(organization_id=organization, id=write.id)
        if write.cancel_updated_at is not None:
            request.updated_at.CopyFrom(at(write.cancel_updated_at))
    elif write.kind == "CONFIRM":
        request = rpc.ConfirmAppointmentRequest(organization_id=organization, id=write.id)
    elif write.kind == "REDACT":
        request = rpc.RedactAppointmentRequest(organization_id=organization, id=write.id)
    elif write.kind == "UPSERT":
        request = rpc.UpsertAppointmentRequest(
            appointment=message_of(write, organization, held_until),
            create_only=write.create_only,
            suggest=write.suggest,
        )
    else:
        request = rpc.UpdateAppointmentRequest(allow_missing=write.allow_missing)
        only = write.fields if mask == "absent" else {*CONTENT_FIELDS}
        request.appointment.CopyFrom(message_of(write, organization, held_until, only))
        if write.attributes_patch is not None:
            request.attributes_patch.update(write.attributes_patch)
            request.attributes_patch.SetInParent()
        if mask != "absent":
            request.update_mask.SetInParent()
            request.update_mask.paths.extend(["*"] if mask == "*" else sorted(write.fields))
    request.etag = tag
    request.idempotency_key = write.key or ""
    request.validate_only = write.validate_only
    return request


def message_of(
    write: Write,
    organization: str,
    held_until: HeldUntil,
    only: Iterable[str] = CONTENT_FIELDS,
) -> pb.Appointment:
    assert write.content is not None
    message = pb.Appointment(organization_id=organization)
    if not write.generated:
        message.id = write.id
    for name in only:
        value = getattr(write.content, name)
        if name == "attributes":
            message.attributes.CopyFrom(struct(value))
        elif name == "additional_resource_ids":
            message.additional_resource_ids.extend(value)
        elif name == "hold_until":
            if value is not None:
                message.hold_until.CopyFrom(held_until(value))
        elif name in ("start", "end", "created_at", "updated_at"):
            if value is not None:
                getattr(message, name).CopyFrom(at(value))
        else:
            setattr(message, name, value)
    return message


def batch_item(
    write: Write, tag: str, *, organization: str, held_until: HeldUntil
) -> rpc.BatchUpsertAppointmentsRequest.Item:
    return rpc.BatchUpsertAppointmentsRequest.Item(
        appointment=message_of(write, organization, held_until),
        etag=tag,
        create_only=write.create_only,
        idempotency_key=write.key or "",
    )


def timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(round(seconds * 1e6))
    return made


def struct(value: Any) -> Struct:
    made = Struct()
    made.update(value)
    return made
