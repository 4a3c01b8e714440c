"""The reflection service, tested with the tools that use it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb

from local.programs import Program

PROGRAMS = Path(sys.executable).parent
SERVICE = "appointments.v1.AppointmentService"
SERVED = {
    SERVICE,
    "appointments.v1.WebhookService",
    "appointments.relay.v1.RelayService",
    "google.longrunning.Operations",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}
NOT_FOUND = 5


def run(*command: str) -> str:
    program, *arguments = command
    done = subprocess.run(
        [str(PROGRAMS / program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def grpcurl(service: Program, *arguments: str) -> str:
    return run("grpcurl", "-plaintext", service.address, *arguments)


def buf_curl(service: Program, *arguments: str, method: str = "") -> str:
    url = f"http://{service.address}{method}"
    return run("buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, url)


@pytest.fixture(params=["v1", "v1alpha"])
def ask(request: pytest.FixtureRequest, channel: grpc.Channel) -> Any:
    """Send requests by either version; return a response for each."""
    method = channel.stream_stream(
        f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )
    return lambda **asked: next(method(iter([pb.ServerReflectionRequest(**asked)]), timeout=30))


def files(response: pb.ServerReflectionResponse) -> dict[str, FileDescriptorProto]:
    shown = map(
        FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto
    )
    return {file.name: file for file in shown}


def messages(shown: Any) -> Iterator[DescriptorProto]:
    for message in shown:
        yield message
        yield from messages(message.nested_type)


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        (SERVICE, f"{SERVICE} is a service"),
        (f"{SERVICE}.CancelAppointment", f"{SERVICE}.CancelAppointment is a method"),
        ("appointments.v1.WebhookService.ReplayWebhook", "is a method"),
        ("google.longrunning.Operations.WaitOperation", "is a method"),
        ("appointments.relay.v1.RelayService.Relay", "is a method"),
        ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "is a method"),
        ("appointments.v1.Appointment", "is a message"),
        ("appointments.v1.Appointment.resource_id", "is a field"),
        ("appointments.v1.Appointment.State", "is an enum"),
        ("appointments.v1.Appointment.State.ACTIVE", "is an enum value"),
        ("appointments.v1.TimeRangeConflict.Conflict", "is a message"),
        ("google.rpc.ErrorInfo", "is a message"),
        ("google.api.http", "is an extension"),
    ],
)
def test_grpcurl_describes_whatever_has_a_name(service: Program, symbol: str, shown: str) -> None:
    assert shown in grpcurl(service, "describe", symbol)


def test_grpcurl_and_buf_list_every_service(service: Program) -> None:
    assert set(grpcurl(service, "list").split()) == SERVED
    assert set(buf_curl(service, "--list-services").split()) == SERVED


def test_every_service_is_listed(ask: Any) -> None:
    listed = ask(list_services="").list_services_response.service
    assert {service.name for service in listed} == SERVED


def test_grpcurl_describes_everything_at_once(service: Program) -> None:
    described = grpcurl(service, "describe")
    for name in SERVED:
        assert f"{name} is a service" in described


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_calls_by_either_version(
    service: Program, version: str, organization: str
) -> None:
    request = {
        "appointment": {
            "organizationId": organization,
            "start": "2030-01-07T08:00:00Z",
            "end": "2030-01-07T08:30:00Z",
        }
    }
    answer = buf_curl(
        service,
        "--reflect-protocol",
        version,
        "--data",
        json.dumps(request),
        method=f"/{SERVICE}/UpsertAppointment",
    )
    assert json.loads(answer)["outcome"] == "CREATED"


@pytest.mark.parametrize("service_name", sorted(SERVED))
def test_every_name_in_json_is_shown(ask: Any, service_name: str) -> None:
    shown = files(ask(file_containing_symbol=service_name))
    fields = [
        field
        for file in shown.values()
        for message in messages(file.message_type)
        for field in (*message.field, *message.extension)
    ] + [field for file in shown.values() for field in file.extension]
    assert fields
    for field in fields:
        head, *words = field.name.split("_")
        assert field.json_name == head + "".join(word[:1].upper() + word[1:] for word in words)


def test_a_file_comes_with_all_that_it_imports(ask: Any) -> None:
    shown = files(ask(file_by_filename="appointments/v1/webhook_service.proto"))
    assert next(iter(shown)) == "appointments/v1/webhook_service.proto"
    for file in shown.values():
        assert set(file.dependency) <= set(shown)


@pytest.mark.parametrize(
    "symbol",
    [
        f"{SERVICE}.CancelAppointment",
        "appointments.v1.Appointment.resource_id",
        "appointments.v1.Appointment.CANCELLED",
        "appointments.v1.Appointment.State.CANCELLED",
        "google.rpc.BadRequest.FieldViolation",
    ],
)
def test_the_file_of_a_symbol_has_it(ask: Any, symbol: str) -> None:
    (file, *_) = files(ask(file_containing_symbol=symbol)).values()
    assert symbol.rpartition(".")[2] in str(file)


def test_extensions_are_shown(ask: Any) -> None:
    numbers = ask(all_extension_numbers_of_type="google.protobuf.MethodOptions")
    assert 72295728 in numbers.all_extension_numbers_response.extension_number
    wanted = pb.ExtensionRequest(
        containing_type="google.protobuf.MethodOptions", extension_number=72295728
    )
    assert "google/api/annotations.proto" in files(ask(file_containing_extension=wanted))


@pytest.mark.parametrize(
    "asked",
    [
        {"file_by_filename": "no.proto"},
        {"file_containing_symbol": "appointments.v1.No"},
        {"file_containing_symbol": f"{SERVICE}.No"},
        {"file_containing_symbol": "appointments.v1.Appointment.State.NO"},
        {"file_containing_symbol": ""},
        {"all_extension_numbers_of_type": "appointments.v1.No"},
        {
            "file_containing_extension": pb.ExtensionRequest(
                containing_type="google.protobuf.MethodOptions", extension_number=1
            )
        },
        {},
    ],
)
def test_what_is_not_there_is_not_found(ask: Any, asked: dict[str, Any]) -> None:
    response = ask(**asked)
    assert response.error_response.error_code == NOT_FOUND
    assert response.error_response.error_message
    assert response.original_request == pb.ServerReflectionRequest(**asked)
