"""Ports to listen on."""

import grpc


class CannotListen(Exception):
    """A port is taken, or an address is not ours."""


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Return the port, which may have been any free one. Raises CannotListen."""
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: is it in use?") from error
