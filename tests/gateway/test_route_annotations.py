"""Routes from annotations, and annotations that are not supported."""

from collections.abc import Callable

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.wrappers_pb2 import BytesValue, DoubleValue

from gateway.http.router import Router
from gateway.transcoding.json_reader import MessageReader
from gateway.transcoding.routes import SERVICES, routes_of
from public_json.rendering import MessageRenderer


def test_routes_are_those_of_the_annotations() -> None:
    assert {(route.http_method, route.template) for route in routes_of(*SERVICES)} == {
        ("POST", "/api/appointments"),
        ("GET", "/api/appointments"),
        ("GET", "/api/appointments/{id}"),
        ("POST", "/api/appointments/{id}:confirm"),
        ("POST", "/api/appointments/{id}:redact"),
        ("PUT", "/api/appointments/{id}"),
        ("PATCH", "/api/appointments/{id}"),
        ("DELETE", "/api/appointments/{id}"),
        ("GET", "/api/appointments/{id}/history"),
        ("GET", "/api/availability"),
        ("GET", "/api/changes"),
        ("POST", "/api/appointments:batchUpsert"),
        ("POST", "/api/webhooks"),
        ("GET", "/api/webhooks"),
        ("GET", "/api/webhooks/{id}"),
        ("PUT", "/api/webhooks/{id}"),
        ("DELETE", "/api/webhooks/{id}"),
        ("POST", "/api/webhooks/{id}:rotateSecret"),
        ("POST", "/api/webhooks/{id}:replay"),
        ("GET", "/api/webhooks/{id}/deliveries"),
    }


def test_a_route_is_given_away_only_once() -> None:
    router: Router[str] = Router()
    router.add("GET", "/a/{id}", "one")
    with pytest.raises(ValueError, match="has an endpoint already"):
        router.add("GET", "/a/{id}", "two")


def test_a_verb_behind_a_variable_is_not_taken_for_its_end() -> None:
    router: Router[str] = Router()
    router.add("GET", "/a/{id}", "read")
    router.add("POST", "/a/{id}:verb", "verb")
    assert router.find("/a/b:verb") == ({"POST": "verb"}, {"id": "b"})
    assert router.find("/a/b:other") == ({"GET": "read", "HEAD": "read"}, {"id": "b:other"})


@pytest.mark.parametrize("make", [MessageReader, MessageRenderer])
@pytest.mark.parametrize("message", [BytesValue.DESCRIPTOR, DoubleValue.DESCRIPTOR])
def test_types_of_fields_that_are_not_done_are_refused_at_start(
    make: Callable[[Descriptor], object], message: Descriptor
) -> None:
    with pytest.raises(NotImplementedError, match=r"Value\.value"):
        make(message)
