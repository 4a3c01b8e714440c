"""Binds the ports of a gRPC server."""

import grpc

from runtime.listening import bracketed, listen_on, listening_socket


def bind(server: grpc.aio.Server, host: str, port: int, *, settings: str) -> int:
    """Listen on a host and port, without TLS. Returns the port, a free one if it was 0.

    Raises CannotListen, which names the `settings` of host and port.
    """

    def listen(address: str, port: int) -> tuple[None, int]:
        try:
            return None, server.add_insecure_port(f"{bracketed(address)}:{port}")
        except RuntimeError:
            # gRPC does not report the cause. Binding a socket raises the operating system's error.
            listening_socket(address, port).close()
            raise

    _, port = listen_on(host, port, listen, settings=settings)
    return port
