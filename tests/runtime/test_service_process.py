"""Running the service: errors at startup, health, channelz, metrics, the database role."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from appointments.v1 import appointment_pb2 as pb
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local.postgres import migrate
from local.programs import Program, StartError
from local.stack import DATABASE
from tests.api import Organization
from tests.conftest import OwnPostgres, StartProgram
from tests.observing import metrics, until

NEED_THE_DATABASE = (
    "appointments.v1.AppointmentService",
    "appointments.v1.WebhookService",
    "appointments.relay.v1.RelayService",
    "google.longrunning.Operations",
)
NEED_NO_DATABASE = (
    "",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
PROGRAMS = Path(sys.executable).parent


def one_line(start: StartProgram, **environment: str) -> str:
    """Run a program that cannot start; return the single line that it prints."""
    with pytest.raises(StartError) as caught:
        start(**environment)
    message = str(caught.value)
    assert "(exit code 1)" in message
    assert "Traceback" not in message
    return message


def test_a_port_in_use_is_one_line(start_service: StartProgram, service: Program) -> None:
    assert str(service.port) in one_line(start_service, GRPC_PORT=str(service.port))
    assert "cannot listen" in one_line(start_service, METRICS_PORT=str(service.metrics_port))


@pytest.mark.parametrize("url", ["postgresql://someone:secret@127.0.0.1:1/none", "no url"])
def test_an_unreachable_database_is_one_line(start_service: StartProgram, url: str) -> None:
    message = one_line(start_service, DATABASE_URL=url)
    assert "DATABASE_URL" in message
    assert "secret" not in message


def test_a_missing_migration_is_one_line(
    start_service: StartProgram, own_postgres: OwnPostgres
) -> None:
    postgres = own_postgres(migrated=False)
    message = one_line(start_service, DATABASE_URL=postgres.url(DATABASE))
    assert "make migrate" in message


def test_at_any_log_level_the_start_is_told(
    start_service: StartProgram, start_gateway: StartProgram
) -> None:
    service = start_service(LOG_LEVEL="error")
    gateway = start_gateway(LOG_LEVEL="error", SERVICE_ADDRESS=service.address)
    assert http_status(f"{gateway.url}/api/changes") == 200
    assert [len(program.log_lines()) for program in (service, gateway)] == [1, 1]


def test_the_services_connections_work_as_its_role(
    database_url: str, service: Program, stub: AppointmentServiceStub, organization: str
) -> None:
    """The service uses the role: it cannot write after the role has lost the right."""
    org = Organization(stub, organization)
    org.upsert("a", 0, 1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("REVOKE EXECUTE ON FUNCTION apply_writes FROM appointments_caller")
        try:
            refused = org.refused("b", 1, 2)
        finally:
            connection.execute("GRANT EXECUTE ON FUNCTION apply_writes TO appointments_caller")
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "apply_writes" not in refused.message
    service.wait_for_event(
        lambda event: "permission denied for function" in event.get("exception", "")
    )
    assert org.upsert("b", 1, 2).outcome == pb.CREATED


def test_owner_and_service_need_not_be_superusers(
    own_postgres: OwnPostgres, start_service: StartProgram, organization: str
) -> None:
    """As in production, one user owns the tables; another has only the service's role."""
    postgres = own_postgres()  # where the role exists already, made by someone else
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE ROLE booking_owner LOGIN")
        admin.execute("CREATE ROLE booking_login LOGIN")
        admin.execute("CREATE DATABASE booking OWNER booking_owner")
        migrate(postgres.url("booking").replace("postgres@", "booking_owner@"))
        login = postgres.url("booking").replace("postgres@", "booking_login@")
        assert "booking_login" in login
        grant = 'GRANT appointments_caller TO "booking_login"'
        assert grant in one_line(start_service, DATABASE_URL=login)
        admin.execute(grant)
    service = start_service(DATABASE_URL=login)
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        assert org.upsert("a", 0, 1).outcome == pb.CREATED
        org.check_history()


def test_health_follows_the_database_and_recovers(
    own_postgres: OwnPostgres, start_service: StartProgram, start_gateway: StartProgram
) -> None:
    postgres = own_postgres()
    service = start_service(DATABASE_URL=postgres.url(DATABASE))
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    with grpc.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def status(name: str) -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=name)).status

        def all_are(wanted: Any) -> Callable[[], bool]:
            return lambda: all(status(name) == wanted for name in NEED_THE_DATABASE)

        serving = all_are(health_pb2.HealthCheckResponse.SERVING)

        until(serving)
        assert http_status(f"{gateway.url}/readyz") == 200
        postgres.stop()
        until(all_are(health_pb2.HealthCheckResponse.NOT_SERVING))
        for name in NEED_NO_DATABASE:
            assert status(name) == health_pb2.HealthCheckResponse.SERVING
        assert http_status(f"{gateway.url}/readyz") == 503
        assert http_status(f"{gateway.url}/healthz") == 200
        postgres.start()
        until(serving)
        assert http_status(f"{gateway.url}/readyz") == 200


def test_every_service_that_is_listed_has_a_health(service: Program) -> None:
    listed = run("grpcurl", "-plaintext", service.address, "list").split()
    assert set(listed) == {*NEED_THE_DATABASE, *NEED_NO_DATABASE} - {""}
    with grpc.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def serving() -> bool:
            asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", *listed)]
            answers = {stub.Check(request).status for request in asked}
            return answers == {health_pb2.HealthCheckResponse.SERVING}

        until(serving)


def http_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_gateway_finds_the_service_again(
    start_service: StartProgram, start_gateway: StartProgram
) -> None:
    service = start_service()
    gateway = start_gateway(SERVICE_ADDRESS=service.address)
    url = f"{gateway.url}/api/changes"
    assert http_status(url) == 200
    port = service.port
    service.stop()
    assert http_status(url) == 503
    start_service(GRPC_PORT=str(port))
    until(lambda: http_status(url) == 200, within=5)


def run(*command: str) -> str:
    program, *arguments = command
    done = subprocess.run(
        [str(PROGRAMS / program), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_channelz_is_served_on_a_port_of_its_own_when_configured(
    start_service: StartProgram,
) -> None:
    service = start_service(CHANNELZ_PORT="0")
    event = service.wait_for_event(lambda event: event.get("event") == "listening")
    servers = run(
        "grpcurl",
        "-plaintext",
        f"127.0.0.1:{event['channelz_port']}",
        "grpc.channelz.v1.Channelz/GetServers",
    )
    assert len(json.loads(servers)["server"]) == 2
    listed = run("grpcurl", "-plaintext", service.address, "list")
    assert "channelz" not in listed


def test_metrics_count_what_happened(start_service: StartProgram, organization: str) -> None:
    service = start_service()
    with grpc.insecure_channel(service.address) as channel:
        org = Organization(AppointmentServiceStub(channel), organization)
        org.upsert("a", 0, 1)
        org.refused("b", 0, 1)
        org.list_page()
        samples = metrics(service)
    label = 'code="{}",method="{}"'.format
    requests = "appointments_request_seconds_count"
    assert samples[f"{requests}{{{label('OK', 'UpsertAppointment')}}}"] == 1
    assert samples[f"{requests}{{{label('ALREADY_EXISTS', 'UpsertAppointment')}}}"] == 1
    assert samples[f"{requests}{{{label('OK', 'ListAppointments')}}}"] == 1
    assert samples["appointments_batch_writes_count"] == 2
    assert samples["appointments_lock_wait_seconds_count"] == 2
    assert samples["appointments_queued_writes"] == 0
    assert samples['appointments_pool_connections{pool="write",state="busy"}'] == 0
    # The pool connects after the service has started to respond.
    idle = 'appointments_pool_connections{pool="write",state="idle"}'
    until(lambda: metrics(service)[idle] == 4)
    assert samples['appointments_pool_waiting{pool="read"}'] == 0


def test_metrics_can_be_switched_off(start_service: StartProgram) -> None:
    service = start_service(METRICS_PORT="")
    event = service.wait_for_event(lambda event: event.get("event") == "listening")
    assert event["metrics_port"] is None
