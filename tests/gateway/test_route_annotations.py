"""Routes from annotations, and what of the protos is not done."""

from collections.abc import Callable

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.wrappers_pb2 import BytesValue, DoubleValue

from gateway.app import SERVICE
from gateway.rendering import MessageRenderer
from gateway.routes import Router, routes_of
from gateway.transcoding import MessageReader


def test_routes_are_those_of_the_annotations() -> None:
    assert {(route.http_method, route.template) for route in routes_of(SERVICE)} == {
        ("POST", "/api/appointments"),
        ("GET", "/api/appointments"),
        ("GET", "/api/appointments/{id}"),
        ("DELETE", "/api/appointments/{id}"),
        ("GET", "/api/appointments/{id}/history"),
        ("GET", "/api/changes"),
        ("POST", "/api/appointments:batchUpsert"),
    }


def test_a_route_is_given_away_only_once() -> None:
    router: Router[str] = Router()
    router.add("GET", "/a/{id}", "one")
    with pytest.raises(ValueError, match="has an endpoint already"):
        router.add("GET", "/a/{id}", "two")


@pytest.mark.parametrize("make", [MessageReader, MessageRenderer])
@pytest.mark.parametrize("message", [BytesValue.DESCRIPTOR, DoubleValue.DESCRIPTOR])
def test_types_of_fields_that_are_not_done_are_refused_at_start(
    make: Callable[[Descriptor], object], message: Descriptor
) -> None:
    with pytest.raises(NotImplementedError, match=r"Value\.value"):
        make(message)
