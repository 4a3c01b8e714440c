"""A DNS server whose records change (RFC 1035)."""

import socket
import threading
from ipaddress import IPv4Address
from typing import Self

A_RECORD = 1


class NameServer:
    """Answers every query for addresses with `addresses` and a TTL of 0."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    def target(self, port: int) -> str:
        """The gRPC target name that is resolved by this server."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/service.test:{port}"

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(512)
            if not query:
                return
            self._socket.sendto(self._answer(query), asker)

    def _answer(self, query: bytes) -> bytes:
        name_end = query.index(0, 12) + 1
        kind = int.from_bytes(query[name_end : name_end + 2])
        found = self.addresses if kind == A_RECORD else ()
        header = query[:2] + b"\x84\x00" + b"\0\1" + len(found).to_bytes(2) + b"\0\0\0\0"
        # A pointer to the name, type A, class IN, 0 seconds, 4 bytes.
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4"
        answers = b"".join(record + IPv4Address(address).packed for address in found)
        return header + query[12 : name_end + 4] + answers
