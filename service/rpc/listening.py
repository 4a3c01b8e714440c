"""Binds the ports of a gRPC server, with TLS or without."""

from collections.abc import Callable
from typing import cast

import grpc

from runtime.listening import CannotListen, bracketed, listen_on, listening_socket
from runtime.tls import Certificates, CertificateWatch


def bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    *,
    settings: str,
    certificates: CertificateWatch | None = None,
    client_certificates: bool = False,
) -> int:
    """Listen on a host and port. Returns the port, a free one if it was 0.

    With `certificates` the connections use TLS, each the current ones, and `client_certificates`
    refuses a caller without a certificate of their authorities.

    Raises CannotListen, which names the `settings` of host and port.
    """

    def listen(address: str, port: int) -> tuple[None, int]:
        host_port = f"{bracketed(address)}:{port}"
        try:
            if certificates is None:
                return None, server.add_insecure_port(host_port)
            credentials = _credentials(certificates, require_client=client_certificates)
            return None, server.add_secure_port(host_port, credentials)
        except RuntimeError as error:
            # gRPC does not report the cause. Binding a socket raises the operating system's error.
            listening_socket(address, port).close()
            if certificates is None:
                raise
            raise CannotListen(
                f"cannot listen on {host_port} ({settings}): gRPC does not accept the certificate"
                " or the key of GRPC_TLS_CERTIFICATE"
            ) from error

    _, port = listen_on(host, port, listen, settings=settings)
    return port


def _credentials(watch: CertificateWatch, *, require_client: bool) -> grpc.ServerCredentials:
    """Return credentials for one address. gRPC asks for renewed certificates at each connection."""
    used = watch.current

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        if watch.current is used:
            return None
        used = watch.current
        return _configuration(used)

    # The stubs do not know that None means unchanged.
    fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed)
    return grpc.dynamic_ssl_server_credentials(_configuration(used), fetch, require_client)


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pair = certificates.pair
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.chain)] if pair else [], certificates.authorities
    )
