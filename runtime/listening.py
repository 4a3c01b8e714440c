"""Listening sockets: one syntax of hosts for all ports, and clear errors."""

import errno
import os
import socket
from collections.abc import Callable
from typing import TypeVar

# Errors for an address that this machine does not have.
_NOT_LOCAL = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Listener = TypeVar("Listener")


class CannotListen(Exception):
    """A port is in use or not allowed, or a host is unknown. Names the port and its settings."""


def bracketed(host: str) -> str:
    """Return a host as it is written before a port: IPv6 addresses in brackets."""
    host = host.removeprefix("[").removesuffix("]")
    return f"[{host}]" if ":" in host else host


def listen_on(
    host: str, port: int, listen: Callable[[str, int], tuple[Listener, int]], *, settings: str
) -> tuple[list[Listener], int]:
    """Listen on every address of a host, with the same port. Returns listeners and port.

    `host` is a name or an address; brackets around an IPv6 address are optional. `::` is every
    address of this machine, including IPv4. `listen` gets a numeric address and a port (0:
    any free one), and returns the listener and its port. It raises OSError.

    Raises CannotListen, which names the `settings` of host and port.
    """
    host_port = f"{bracketed(host)}:{port}"
    try:
        found = socket.getaddrinfo(
            host.removeprefix("[").removesuffix("]"), port, type=socket.SOCK_STREAM
        )
    except OSError as error:  # socket.gaierror
        raise CannotListen(
            f"cannot listen on {host_port} ({settings}): the host is not known: {error.strerror}"
        ) from error
    except UnicodeError as error:
        raise CannotListen(
            f"cannot listen on {host_port} ({settings}): not a host's name"
        ) from error
    addresses = [socket.getnameinfo(each[4], socket.NI_NUMERICHOST)[0] for each in found]
    listeners: list[Listener] = []
    missing: OSError | None = None
    for address in dict.fromkeys(addresses):
        try:
            listener, port = listen(address, port)
        except OSError as error:
            # A name may have addresses of both families on a machine that supports only one.
            if error.errno not in _NOT_LOCAL:
                raise _cannot(host_port, settings, error) from error
            missing = error
        else:
            listeners.append(listener)
    if not listeners and missing is not None:
        raise _cannot(host_port, settings, missing) from missing
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


def _cannot(host_port: str, settings: str, error: OSError) -> CannotListen:
    # str(error) may be a long text of a library.
    reason = os.strerror(error.errno or 0).lower()
    return CannotListen(f"cannot listen on {host_port} ({settings}): {reason}")
