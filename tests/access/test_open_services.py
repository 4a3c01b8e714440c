"""Health is open; reflection is what REFLECTION says."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from local.programs import Program
from service.access.key_table import KeyTable
from tests.access.caller import Metadata, bearer, create
from tests.access.conftest import Guarded
from tests.conftest import StartProgram

V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def reflection(program: Program, metadata: Metadata = ()) -> tuple[str, str]:
    """List the services by both versions. Returns the first one's name, or the codes."""
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    with grpc.insecure_channel(program.address) as channel:
        alpha = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        v1: Any = channel.stream_stream(
            V1,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        def answer(call: Any) -> str:
            try:
                [response] = call(iter([request]), metadata=metadata, timeout=10)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return str(error.code().name)
            return str(response.list_services_response.service[0].name)

        return answer(alpha), answer(v1)


FIRST = "appointments.relay.v1.RelayService"


def test_health_and_reflection_are_open(guarded: Guarded) -> None:
    with grpc.insecure_channel(guarded.program.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "appointments.v1.AppointmentService"):
            status = check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
    assert reflection(guarded.program) == (FIRST, FIRST)


def test_reflection_can_be_for_callers_with_a_credential(
    guarded: Guarded, table: KeyTable, start_service: StartProgram
) -> None:
    program = start_service(
        DATABASE_URL=guarded.database_url, ACCESS_CONTROL="on", REFLECTION="authenticated"
    )
    refused = ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert reflection(program) == reflection(program, bearer("wrong")) == refused
    assert reflection(program, bearer(create(table, "any").text)) == (FIRST, FIRST)


@pytest.mark.parametrize("control", ["on", "off"])
def test_reflection_can_be_off(start_service: StartProgram, control: str) -> None:
    program = start_service(ACCESS_CONTROL=control, REFLECTION="off")
    assert reflection(program) == ("UNIMPLEMENTED", "UNIMPLEMENTED")
