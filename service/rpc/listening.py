"""The ports that gRPC listens on."""

import grpc

from runtime.listening import bracketed, listen_on, listening_socket


def bind(server: grpc.aio.Server, host: str, port: int, *, settings: str) -> int:
    """Return the port, which may have been any free one.

    Raises CannotListen, which names the `settings` that host and port are from.
    """

    def listen(address: str, port: int) -> tuple[None, int]:
        try:
            return None, server.add_insecure_port(f"{bracketed(address)}:{port}")
        except RuntimeError:
            # gRPC does not say why. The system does, when it is asked for the same.
            listening_socket(address, port).close()
            raise

    _, port = listen_on(host, port, listen, settings=settings)
    return port
