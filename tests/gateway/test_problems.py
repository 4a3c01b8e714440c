"""gRPC statuses to problems."""

import re
from typing import Any

import pytest
from appointments.v1.appointment_pb2 import TimeRangeConflict
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from gateway.http.problems import MAX_ERRORS, FieldError, StatusConverter, invalid_fields
from local.programs import ROOT
from public_json.reasons import Reason

API_GUIDE = (ROOT / "docs/api.md").read_text("utf-8")
# Statuses of gRPC itself, which the service never returns.
ALONE = {
    Reason.INVALID_ARGUMENT,
    Reason.FAILED_PRECONDITION,
    Reason.OUT_OF_RANGE,
    Reason.NOT_FOUND,
    Reason.ALREADY_EXISTS,
    Reason.ABORTED,
    Reason.UNIMPLEMENTED,
}
READER = StatusConverter(frozenset({"appointment"}))


def _status(code: StatusCode, reason: str, *details: Message, message: str = "why") -> Status:
    status = Status(code=code.value[0], message=message)
    for detail in (ErrorInfo(reason=reason, domain="appointments.v1"), *details):
        packed = PackedAny()
        packed.Pack(detail)
        status.details.append(packed)
    return status


@pytest.mark.parametrize(
    ("code", "reason", "http"),
    [
        (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", 400),
        (StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", 400),
        (StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED", 422),
        (StatusCode.ALREADY_EXISTS, "TIME_RANGE_CONFLICT", 409),
        (StatusCode.ALREADY_EXISTS, "APPOINTMENT_EXISTS", 412),
        (StatusCode.ABORTED, "ETAG_MISMATCH", 412),
        (StatusCode.ABORTED, "SOMETHING_NEW", 409),
        (StatusCode.NOT_FOUND, "APPOINTMENT_NOT_FOUND", 404),
        (StatusCode.UNAUTHENTICATED, "NO_CREDENTIALS", 401),
        (StatusCode.PERMISSION_DENIED, "NOT_YOURS", 403),
        (StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", 429),
        (StatusCode.UNAVAILABLE, "LOCK_TIMEOUT", 503),
        (StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", 503),
        (StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", 504),
        (StatusCode.FAILED_PRECONDITION, "X", 400),
        (StatusCode.UNIMPLEMENTED, "X", 501),
    ],
)
def test_status_and_reason_decide(code: StatusCode, reason: str, http: int) -> None:
    problem = READER.of_status(_status(code, reason))
    assert (problem.status, problem.code, problem.detail) == (http, reason, "why")


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_grpc_own_words_are_never_passed_on(code: StatusCode) -> None:
    problem = READER.of_status(Status(code=code.value[0], message="ipv4:10.0.0.1: refused"))
    assert "10.0.0.1" not in str(problem.body("r"))
    assert problem.status >= 400


@pytest.mark.parametrize("code", [StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS])
def test_our_fault_is_told_without_detail(code: StatusCode) -> None:
    problem = READER.of_status(_status(code, "LEAK", message="psycopg.errors"))
    assert problem.body() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something failed on our side.",
        "code": "INTERNAL",
    }


def test_unknown_code_and_broken_details_are_our_fault() -> None:
    assert READER.of_status(Status(code=99)).code == "INTERNAL"
    broken = _status(StatusCode.NOT_FOUND, "GONE")
    broken.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    broken.details.add(type_url="type.googleapis.com/some.Unknown", value=b"\xff")
    assert READER.of_status(broken).code == "GONE"


def test_another_domains_reason_is_not_ours() -> None:
    status = Status(code=StatusCode.NOT_FOUND.value[0], message="secret")
    status.details.add().Pack(ErrorInfo(reason="X", domain="googleapis.com"))
    assert READER.of_status(status).body()["code"] == "NOT_FOUND"


def test_fields_are_named_as_the_caller_wrote_them() -> None:
    paths = [
        "appointment.created_at",
        "requests[3].appointment.start",
        "page_size",
        "requests[0].idempotency_key",
    ]
    violations = [BadRequest.FieldViolation(field=path, description="is bad") for path in paths]
    problem = READER.of_status(
        _status(
            StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", BadRequest(field_violations=violations)
        )
    )
    assert [error.field for error in problem.errors] == [
        "createdAt",
        "requests[3].appointment.start",
        "pageSize",
        "requests[0].idempotencyKey",
    ]
    assert problem.detail == "createdAt is bad (and 3 more)"


def test_conflicts_are_listed() -> None:
    conflict = TimeRangeConflict(more_conflicts=True)
    conflict.conflicts.add(id="a", version=2).start.FromJsonString("2026-01-01T00:00:00Z")
    body = READER.render(_status(StatusCode.ALREADY_EXISTS, "TIME_RANGE_CONFLICT", conflict))
    assert body["conflicts"] == [
        {"id": "a", "start": "2026-01-01T00:00:00Z", "version": 2, "resourceIds": []}
    ]
    assert body["moreConflicts"] is True
    assert "requestId" not in body


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (Duration(), 1),
        (Duration(nanos=1), 1),
        (Duration(seconds=2), 2),
        (Duration(seconds=2, nanos=1), 3),
    ],
)
def test_delay_is_rounded_up_to_whole_seconds(delay: Duration, seconds: int) -> None:
    status = _status(StatusCode.UNAVAILABLE, "LOCK_TIMEOUT", RetryInfo(retry_delay=delay))
    assert READER.of_status(status).retry_after == seconds


@pytest.mark.parametrize(
    "code", [StatusCode.CANCELLED, StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED]
)
def test_trying_again_is_proposed_even_without_a_delay(code: StatusCode) -> None:
    assert READER.of_status(Status(code=code.value[0])).retry_after == 1


def test_a_hostile_body_does_not_multiply_itself() -> None:
    errors = [FieldError("x" * 1_000_000, "is not a known field")] * 1000
    body: dict[str, Any] = invalid_fields(errors).problem.body("r")
    assert len(str(body)) < MAX_ERRORS * 300
    assert body["detail"].endswith("(and 999 more)")


def test_every_grpc_code_has_a_reason_of_its_own() -> None:
    """A status without a reason of the service is INTERNAL only if its code is."""
    codes = [code for code in StatusCode if code is not StatusCode.OK]
    ours = {StatusCode.INTERNAL, StatusCode.UNKNOWN, StatusCode.DATA_LOSS}
    for code in codes:
        problem = READER.of_status(Status(code=code.value[0]))
        assert (problem.code == Reason.INTERNAL) == (code in ours), code
        assert isinstance(problem.code, Reason)
        assert problem.status == problem.code.http


def test_the_api_guide_lists_every_reason_and_its_codes() -> None:
    row = r"^\|[^|]*\|([^|]*)\| ([0-9, ]+) \| (.*`[A-Z_]+`.*) \|$"
    listed = {
        reason: (codes, [int(status) for status in statuses.split(", ")])
        for codes, statuses, reasons in re.findall(row, API_GUIDE, re.MULTILINE)
        for reason in re.findall("[A-Z_]{5,}", reasons)
    }
    known = {reason for reason in Reason if reason not in ALONE}
    assert listed.keys() == known
    for reason in known:
        codes, statuses = listed[reason]
        assert reason.http in statuses, reason
        assert reason.grpc is None or f"`{reason.grpc.name}`" in codes, reason
