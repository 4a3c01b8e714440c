"""Errors in settings name the variable, in one line."""

import os
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import ValidationError

from gateway.settings import Settings as GatewaySettings
from local.programs import StartError
from runtime.settings import faults
from service.settings import Settings as ServiceSettings
from tests.conftest import new_process

NEEDED: dict[Any, dict[str, str]] = {
    ServiceSettings: {"DATABASE_URL": "postgresql://somebody@nowhere/none"},
    GatewaySettings: {},
}

WRONG = [
    # Of the service and its worker.
    (ServiceSettings, "GRPC_PORT", "70000"),
    (ServiceSettings, "GRPC_PORT", "http"),
    (ServiceSettings, "LOG_LEVEL", "INFO"),
    (ServiceSettings, "LOG_FORMAT", "xml"),
    (ServiceSettings, "MAX_QUEUED_WRITES", "10"),
    (ServiceSettings, "LOCK_TIMEOUT", "0"),
    (ServiceSettings, "LOCK_TIMEOUT", "inf"),
    (ServiceSettings, "LOCK_TIMEOUT", "6"),
    (ServiceSettings, "DATABASE_URL", ""),
    (ServiceSettings, "WORKER_CONNECTIONS", "2"),
    (ServiceSettings, "WORKER_METRICS_PORT", "70000"),
    (ServiceSettings, "OPERATION_LEASE", "soon"),
    (ServiceSettings, "OPERATION_POLL_INTERVAL", "0"),
    (ServiceSettings, "OPERATION_RETENTION_DAYS", "0"),
    # Of the gateway.
    (GatewaySettings, "GATEWAY_PORT", "x"),
    (GatewaySettings, "GATEWAY_PORT", "65536"),
    (GatewaySettings, "GATEWAY_PORT", ""),
    (GatewaySettings, "GATEWAY_TIMEOUT", "0"),
    (GatewaySettings, "GATEWAY_TIMEOUT", "nan"),
    (GatewaySettings, "GATEWAY_TIMEOUT", "3601"),
    (GatewaySettings, "GATEWAY_MAX_BODY_BYTES", "-1"),
    (GatewaySettings, "MAX_MESSAGE_BYTES", "1023"),
    (GatewaySettings, "LOG_LEVEL", "loud"),
    (GatewaySettings, "LOG_LEVEL", "INFO"),
    (GatewaySettings, "LOG_FORMAT", "xml"),
    (GatewaySettings, "SERVICE_ADDRESS", ""),
    (GatewaySettings, "SERVICE_ADDRESS", "localhost"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://booking.example/"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://booking.example/path"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://Booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "HTTPS://booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://me@booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://*.booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://bücher.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://booking.example:443"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "http://booking.example:80"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://booking.example:"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://booking.example:x"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "https://a.example https://b.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "*, https://booking.example"),
    (GatewaySettings, "GATEWAY_CORS_ORIGINS", "null"),
]


def read(settings: Any, **variables: str) -> Any:
    """Read settings from these environment variables only."""
    with patch.dict(os.environ, {**NEEDED[settings], **variables}, clear=True):
        return settings()


def faults_of(settings: Any, **variables: str) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        read(settings, **variables)
    return faults(caught.value)


@pytest.mark.parametrize(("settings", "name", "value"), WRONG)
def test_a_wrong_setting_is_named(settings: Any, name: str, value: str) -> None:
    [said] = faults_of(settings, **{name: value})
    assert name in said
    assert "\n" not in said
    assert "Value error" not in said


def test_what_is_needed_is_enough_and_every_fault_is_named() -> None:
    assert read(GatewaySettings).gateway_port == 3000
    assert read(ServiceSettings).grpc_port == 50051
    named = [
        said.partition(":")[0]
        for said in faults_of(ServiceSettings, GRPC_PORT="x", LOG_LEVEL="loud", LOCK_TIMEOUT="soon")
    ]
    assert sorted(named) == ["GRPC_PORT", "LOCK_TIMEOUT", "LOG_LEVEL"]


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("", ()),
        (" ", ()),
        ("*", ("*",)),
        ("https://booking.example", ("https://booking.example",)),
        (
            "https://a-b.example:8443, http://localhost:8080,http://[::1]:3001,",
            ("https://a-b.example:8443", "http://localhost:8080", "http://[::1]:3001"),
        ),
        ("https://xn--bcher-kva.example", ("https://xn--bcher-kva.example",)),
        ("capacitor://localhost", ("capacitor://localhost",)),
        ("http://booking.example:443", ("http://booking.example:443",)),
    ],
)
def test_origins_are_a_list(value: str, origins: tuple[str, ...]) -> None:
    assert read(GatewaySettings, GATEWAY_CORS_ORIGINS=value).gateway_cors_origins == origins
    assert read(GatewaySettings).gateway_cors_origins == ()


def test_an_origin_that_no_browser_sends_is_named() -> None:
    [said] = faults_of(GatewaySettings, GATEWAY_CORS_ORIGINS="http://a.example,https://b.example/")
    assert said.startswith("GATEWAY_CORS_ORIGINS: must be origins such as https://booking.example")
    assert "'https://b.example/'" in said
    assert "a.example'" not in said


@pytest.mark.parametrize(
    "url",
    [
        "amqp://me:s3cret@host:port/",
        "http://me:s3cret@host/",
        "amqp:s3cret",
        "s3cret",
        "localhost:5672",
    ],
)
def test_a_url_of_rabbitmq_that_is_none_is_said_without_repeating_it(url: str) -> None:
    [said] = faults_of(ServiceSettings, AMQP_URL=url)
    assert said.startswith("AMQP_URL: must be like amqp://")
    assert "s3cret" not in said


def test_the_queue_in_rabbitmq_needs_its_url() -> None:
    [said] = faults_of(ServiceSettings, OPERATION_QUEUE="rabbitmq")
    assert said == "OPERATION_QUEUE=rabbitmq needs AMQP_URL"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("service",), "GRPC_PORT"),
        (("service", "worker"), "WORKER_METRICS_PORT"),
        (("gateway",), "GATEWAY_PORT"),
    ],
)
def test_a_program_ends_with_one_line_that_names_the_setting(
    command: tuple[str, ...], name: str
) -> None:
    module, *arguments = command
    needed = {"DATABASE_URL": "postgresql://somebody@nowhere/none", name: "http"}
    program = new_process(module, needed, *arguments)
    with pytest.raises(StartError, match=rf"error: {name}: .* \(exit code 1\)$"):
        program.wait_until_listening()
    assert len(program.log_lines()) == 1
