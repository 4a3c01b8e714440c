"""`python -m runtime.health_check [program]`: exit with 0 if a program of this container is well.

The program is `service`, `worker` or `gateway`, by default that of the container's command. Its
settings are read from the environment, as the program reads them.

- service: gRPC health of the process, on GRPC_HEALTH_PORT or GRPC_PORT, without TLS;
- worker: its metrics, unless they are off;
- gateway: `/readyz`.
"""

import os
import ssl
import sys
from pathlib import Path
from urllib.request import urlopen

TIMEOUT = 5.0  # seconds


def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else program_of(_command())
    if program == "service":
        _check_service(_setting("GRPC_HEALTH_PORT") or _setting("GRPC_PORT") or "50051")
    elif program == "worker":
        port = os.environ.get("WORKER_METRICS_PORT", "9466")
        if port:
            _fetch(f"http://localhost:{port}/metrics")
    elif program == "gateway":
        scheme = "https" if _setting("GATEWAY_TLS_CERTIFICATE") else "http"
        _fetch(f"{scheme}://localhost:{_setting('GATEWAY_PORT') or '3000'}/readyz")


def program_of(command: str) -> str:
    """Return the program of a command line, empty if it is none that can be checked."""
    words = command.split()
    for name in ("service", "gateway"):
        if name in words:
            return "worker" if name == "service" and "worker" in words else name
    return ""


def _command() -> str:
    """Return the command line of the container's first process, which may be an init."""
    return Path("/proc/1/cmdline").read_text("utf-8", "replace").replace("\0", " ")


def _setting(name: str) -> str:
    return os.environ.get(name, "")


def _check_service(port: str) -> None:
    import grpc  # noqa: PLC0415  only this check needs it
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit("not serving")


def _fetch(url: str) -> None:
    # The certificate is for the name by which others reach this machine.
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    urlopen(url, timeout=TIMEOUT, context=trusting).close()  # noqa: S310  loopback


if __name__ == "__main__":
    main()
