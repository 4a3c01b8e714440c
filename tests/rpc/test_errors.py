"""Every error of the service, as callers of service and gateway receive it."""

from collections.abc import Iterator
from http import HTTPStatus

import grpc
import pytest

from gateway.http.problems import StatusConverter
from gateway.openapi.document import openapi_document
from gateway.transcoding.routes import SERVICES, routes_of
from public_json.reasons import Reason, Requests
from service.errors import (
    BatchRefused,
    BrokerUnavailable,
    InvalidFields,
    RateLimited,
    ServiceError,
    TimeRangeConflict,
)
from service.rpc.status import code_of, status_of
from tests.api import refusal_of


def classes_below(above: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for below in above.__subclasses__():
        if below.__module__ == ServiceError.__module__:
            yield below
            yield from classes_below(below)


ERRORS = sorted(classes_below(ServiceError), key=lambda error: error.__name__)


def made(error: type[ServiceError]) -> ServiceError:
    """Create an error of a class with suitable arguments."""
    if issubclass(error, InvalidFields):
        return error([("title", "is too long")])
    if issubclass(error, TimeRangeConflict):
        return error([])
    if issubclass(error, BatchRefused):
        return error({3: made(TimeRangeConflict)})
    if issubclass(error, BrokerUnavailable):
        return error("RabbitMQ is away", certain=True)
    if issubclass(error, RateLimited):
        return error("too many calls", retry_after=0.4, headers=("", ""))
    return error("why")


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_has_one_reason_everywhere(error: type[ServiceError]) -> None:
    reason = error.reason
    status = status_of(made(error))
    sent = refusal_of(status, code_of(made(error)))
    assert (sent.code, sent.reason) == (reason.grpc, reason)
    assert (sent.retry_after is not None) == reason.temporary

    problem = StatusConverter(frozenset()).of_status(status)
    assert (problem.code, problem.status) == (reason, reason.http)
    assert (problem.retry_after is not None) == reason.temporary
    assert problem.body()["title"] == HTTPStatus(reason.http).phrase


def test_what_is_no_error_of_the_service_has_the_reason_of_our_fault() -> None:
    fault = ValueError("a secret")
    sent = refusal_of(status_of(fault), code_of(fault))
    assert (sent.code, sent.reason) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
    assert "secret" not in sent.message


def test_no_two_errors_share_a_reason() -> None:
    reasons = [error.reason for error in ERRORS]
    assert len(reasons) == len(set(reasons))


def test_every_reason_with_a_grpc_code_is_of_an_error() -> None:
    coded = {reason for reason in Reason if reason.grpc is not None}
    assert coded == {error.reason for error in ERRORS} | {Reason.INTERNAL}


def test_names_are_values() -> None:
    assert [reason.name for reason in Reason] == [reason.value for reason in Reason]


def test_every_reason_is_in_a_response_of_the_document() -> None:
    document = openapi_document(SERVICES, routes_of(*SERVICES))
    responses = document["components"]["responses"]
    by_status = {
        int(status): responses[response["$ref"].rpartition("/")[2]]["description"]
        for path in document["paths"].values()
        for operation in path.values()
        for status, response in operation["responses"].items()
        if status != "default" and "$ref" in response
    }
    for reason in Reason:
        if reason.requests is not Requests.NONE:
            assert f"- `{reason}`: {reason.meaning}" in by_status[reason.http]


def test_an_error_without_a_reason_cannot_be_imported() -> None:
    with pytest.raises(TypeError, match="required keyword-only argument: 'reason'"):
        type("Forgotten", (ServiceError,), {})


def test_an_error_with_a_reason_of_the_gateway_alone_cannot_be_imported() -> None:
    with pytest.raises(TypeError, match="ROUTE_NOT_FOUND has no gRPC code"):
        type("Misplaced", (ServiceError,), {}, reason=Reason.ROUTE_NOT_FOUND)
