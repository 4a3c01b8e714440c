"""The image in docker-compose.yml: who builds it, and its health check."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from local.programs import ROOT, Program
from runtime.health_check import program_of
from tests.certificates import Authority, Files
from tests.conftest import StartProgram


def test_one_service_builds_the_image_of_all_programs() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    users = {name for name, each in services.items() if each["image"] == "appointments"}
    assert users == {"migrate", "service", "worker", "gateway"}
    # The others depend on it.
    assert [name for name, each in services.items() if "build" in each] == ["migrate"]


def check(name: str, **environment: str) -> int:
    """Run the health check as a container does, and return its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "runtime.health_check", name],
        cwd=ROOT,
        env=environment,
        check=False,
        stderr=subprocess.DEVNULL,
    ).returncode


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority()
    return Files(tmp_path).write(authority.issue(), authority)


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("python -m service ", "service"),
        ("/sbin/docker-init -- python -m service worker ", "worker"),
        ("/app/.venv/bin/python -m gateway ", "gateway"),
        ("/bin/sh /app/migrations/migrate --wait ", ""),
        ("python -m service.postgres.migration --wait ", ""),
    ],
)
def test_the_program_is_that_of_the_container(command: str, program: str) -> None:
    assert program_of(command) == program


def test_without_tls(service: Program, gateway: Program, worker: Program) -> None:
    assert check("service", GRPC_PORT=f"{service.port}") == 0
    assert check("gateway", GATEWAY_PORT=f"{gateway.port}") == 0
    assert check("worker", WORKER_METRICS_PORT=f"{worker.metrics_port}") == 0
    assert check("worker", WORKER_METRICS_PORT="") == 0
    assert check("service", GRPC_PORT=f"{gateway.port}") != 0
    assert check("gateway", GATEWAY_PORT=f"{service.port}") != 0
    worker.stop()
    assert check("worker", WORKER_METRICS_PORT=f"{worker.metrics_port}") != 0


def test_with_tls(start_service: StartProgram, start_gateway: StartProgram, files: Files) -> None:
    pair = {"CERTIFICATE": str(files.certificate), "KEY": str(files.key)}
    service = start_service(
        **{f"GRPC_TLS_{name}": path for name, path in pair.items()},
        GRPC_TLS_CLIENT_CA=str(files.ca),
        GRPC_HEALTH_PORT="0",
    )
    health_port = service.wait_for_event(lambda event: event["event"] == "listening")["health_port"]
    grpc_port = f"{service.port}"
    assert check("service", GRPC_PORT=grpc_port) != 0
    assert check("service", GRPC_PORT=grpc_port, GRPC_HEALTH_PORT=f"{health_port}") == 0
    https = {f"GATEWAY_TLS_{name}": path for name, path in pair.items()}
    to_service = {f"SERVICE_TLS_{name}": path for name, path in pair.items()}
    gateway = start_gateway(
        SERVICE_ADDRESS=service.address, SERVICE_TLS_CA=str(files.ca), **to_service, **https
    )
    assert check("gateway", GATEWAY_PORT=f"{gateway.port}", **https) == 0
    service.stop()
    assert check("gateway", GATEWAY_PORT=f"{gateway.port}", **https) != 0
