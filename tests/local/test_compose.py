"""The health checks of docker-compose.yml, which are programs in its text."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from local.programs import ROOT, Program
from tests.certificates import Authority, Files
from tests.conftest import StartProgram


def check(name: str, port: int, **environment: str) -> int:
    """Run the health check of a service as its container does, and return its exit code."""
    composed = (ROOT / "docker-compose.yml").read_text("utf-8")
    found = re.search(
        rf"^  {name}:\n[\s\S]*?- -c\n +- \|\n((?: {{10}}.*\n)+)", composed, re.MULTILINE
    )
    assert found is not None
    code = dedent(found[1])
    [default] = set(re.findall("50051|3000", code))
    return subprocess.run(
        [sys.executable, "-c", code.replace(default, str(port))],
        env=environment,
        check=False,
        stderr=subprocess.DEVNULL,
    ).returncode


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority()
    return Files(tmp_path).write(authority.issue(), authority)


def test_without_tls(service: Program, gateway: Program) -> None:
    assert check("service", service.port) == 0
    assert check("gateway", gateway.port) == 0
    assert check("service", gateway.port) != 0
    assert check("gateway", service.port) != 0


def test_with_tls(start_service: StartProgram, start_gateway: StartProgram, files: Files) -> None:
    pair = {"CERTIFICATE": str(files.certificate), "KEY": str(files.key)}
    service = start_service(
        **{f"GRPC_TLS_{name}": path for name, path in pair.items()},
        GRPC_TLS_CLIENT_CA=str(files.ca),
        GRPC_HEALTH_PORT="0",
    )
    port = service.wait_for_event(lambda event: event["event"] == "listening")["health_port"]
    assert check("service", service.port) != 0
    assert check("service", service.port, GRPC_HEALTH_PORT=str(port)) == 0
    https = {f"GATEWAY_TLS_{name}": path for name, path in pair.items()}
    to_service = {f"SERVICE_TLS_{name}": path for name, path in pair.items()}
    gateway = start_gateway(
        SERVICE_ADDRESS=service.address, SERVICE_TLS_CA=str(files.ca), **to_service, **https
    )
    assert check("gateway", gateway.port, **https) == 0
    service.stop()
    assert check("gateway", gateway.port, **https) != 0
