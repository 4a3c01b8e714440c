"""Where programs listen: one spelling of hosts for all, and why a port cannot be had."""

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from prometheus_client import CollectorRegistry, start_http_server

# An address that this machine has not.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Listener = TypeVar("Listener")


class CannotListen(Exception):
    """A port is taken or not allowed, or a host is not ours; names it and its settings."""


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an address of IPv6 in brackets."""
    host = host.removeprefix("[").removesuffix("]")
    return f"[{host}]" if ":" in host else host


def listen_on(
    host: str, port: int, listen: Callable[[str, int], tuple[Listener, int]], *, settings: str
) -> tuple[list[Listener], int]:
    """Listen on every address that a host stands for, all with one port; gives that.

    `host` is an address, of IPv6 with or without brackets, or a name. `::` is every address of
    this machine, those of IPv4 too. `listen` gets a numeric address and a port, 0 for any
    free one, and returns the port with what listens; it raises OSError.

    Raises CannotListen, which names the `settings` that host and port are from.
    """
    place = f"{bracketed(host)}:{port}"
    try:
        found = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM
        )
    except OSError as error:  # gaierror, whose own text is that of the resolver
        raise CannotListen(
            f"cannot listen on {place} ({settings}): the host is not known: {error.strerror}"
        ) from error
    except UnicodeError as error:
        raise CannotListen(f"cannot listen on {place} ({settings}): not a host's name") from error
    addresses = [socket.getnameinfo(each[4], socket.NI_NUMERICHOST)[0] for each in found]
    listeners: list[Listener] = []
    missing: OSError | None = None
    for address in dict.fromkeys(addresses):
        try:
            listener, port = listen(address, port)
        except OSError as error:
            # A name may have addresses of both families on a machine with one.
            if error.errno not in _NOT_HERE:
                raise _cannot(place, settings, error) from error
            missing = error
        else:
            listeners.append(listener)
    if not listeners and missing is not None:
        raise _cannot(place, settings, missing) from missing
    return listeners, port


def listening_socket(address: str, port: int, *, backlog: int = 128) -> socket.socket:
    """Return a socket that listens on a numeric address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    resolved = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    return socket.create_server(
        resolved,
        family=family,
        backlog=backlog,
        dualstack_ipv6=address == "::" and socket.has_dualstack_ipv6(),
    )


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, *, settings: str
) -> tuple[int, Callable[[], None]]:
    """Serve metrics from threads; gives the port, and what ends it, which may block shortly.

    Raises CannotListen.
    """

    def listen(address: str, port: int) -> tuple[Callable[[], None], int]:
        server, thread = start_http_server(port, address, registry)

        def stop() -> None:
            # Wakes the thread, which otherwise looks twice a second whether it is to end. Where
            # a system refuses this for a socket that listens, it takes that half second.
            with suppress(OSError):
                server.socket.shutdown(socket.SHUT_RDWR)
            server.shutdown()
            server.server_close()
            thread.join()

        return stop, server.server_port

    stops, port = listen_on(host, port, listen, settings=settings)

    def stop_all() -> None:
        for stop in stops:
            stop()

    return port, stop_all


def _cannot(place: str, settings: str, error: OSError) -> CannotListen:
    # Not its own text, which may be somebody else's long one.
    reason = os.strerror(error.errno or 0).lower()
    return CannotListen(f"cannot listen on {place} ({settings}): {reason}")
