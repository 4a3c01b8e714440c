"""Queries of availability by gRPC, in minutes of the morning."""

from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1 import availability_pb2 as rpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.api import TIMEOUT, Organization, Refusal, at, refusal

Span = tuple[float, float]
ALL = rpc.QueryAvailabilityRequest.ALL
DAY = 24 * 60


def minutes(number: float) -> Duration:
    return Duration(seconds=int(number * 60))


def request_of(
    org: Organization, start: float, end: float, *ids: str, **fields: Any
) -> rpc.QueryAvailabilityRequest:
    for name in ("duration", "granularity", "buffer_before", "buffer_after"):
        if name in fields:
            fields[name] = minutes(fields[name])
    request = rpc.QueryAvailabilityRequest(
        organization_id=org.id, to=at(end), resource_id=ids or [""], **fields
    )
    getattr(request, "from").CopyFrom(at(start))
    return request


def query(org: Organization, start: float, end: float, *ids: str, **fields: Any) -> Any:
    """Query from one minute of the morning to another; without ids, the unnamed resource."""
    request = request_of(org, start, end, *ids, **fields)
    return org.stub.QueryAvailability(request, timeout=TIMEOUT)


def refused(org: Organization, start: float, end: float, *ids: str, **fields: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as raised:
        query(org, start, end, *ids, **fields)
    return refusal(raised.value)


def spans(ranges: Iterable[pb.TimeRange]) -> list[Span]:
    return [(minute(each.start), minute(each.end)) for each in ranges]


def minute(time: Timestamp) -> float:
    return (time.ToNanoseconds() - at(0).ToNanoseconds()) / 60e9
