"""A model of a browser's `EventSource`: it reconnects after every end, unless refused."""

import socket
import ssl
import threading
from http.client import HTTPException, HTTPResponse
from typing import Self
from urllib.parse import urlencode

from local.programs import Program
from tests.rest_client import EventReader, connection_to

DEFAULT_RETRY = 3000


class EventSource:
    """The rules of WHATWG HTML, section 9.2, for the changes of an organization.

    An end of the stream or of the connection is followed by another request, `retry`
    milliseconds later; any status but 200, and any other type, closes it permanently.
    """

    def __init__(
        self,
        gateway: Program,
        organization: str,
        *,
        tls: ssl.SSLContext | None = None,
        **query: object,
    ) -> None:
        self.events: list[dict[str, str]] = []
        self.streams = 0
        """The number of streams so far."""
        self.refusal: int | None = None
        """The status after which it does not reconnect."""
        self.retry = DEFAULT_RETRY
        self.last_id = ""
        self.comments: list[str] = []
        self._query = urlencode({"organizationId": organization, **query}, doseq=True)
        self._connection = connection_to(gateway, tls, timeout=60)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def revisions(self) -> list[int]:
        return [int(event["id"]) for event in self.events]

    def _run(self) -> None:
        while not self._closed.is_set() and self.refusal is None:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if self.last_id:
                headers["Last-Event-ID"] = self.last_id
            try:
                self._connection.request("GET", f"/api/changes?{self._query}", headers=headers)
                self._read(self._connection.getresponse())
            except (OSError, HTTPException):
                pass  # a network error is an end like any other
            finally:
                self._connection.close()
            self._closed.wait(self.retry / 1000)

    def _read(self, response: HTTPResponse) -> None:
        media_type = response.headers.get_content_type()
        if response.status != 200 or media_type != "text/event-stream":
            self.refusal = response.status
            return
        self.streams += 1
        reader = EventReader(response, self.last_id)
        while not self._closed.is_set():
            event = reader.event()
            self.comments, self.last_id = reader.comments, reader.last_id
            self.retry = self.retry if reader.retry is None else reader.retry
            if event is None:
                return
            self.events.append(event)
