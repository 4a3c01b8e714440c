"""A REST client for tests. It checks what must hold for every response."""

import json
import socket
import ssl
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import IO, Any, Self
from urllib.parse import quote, urlencode

from local.programs import Program

START, END = "2030-01-07T08:00:00Z", "2030-01-07T08:30:00Z"


class Answer:
    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.content = response.read()
        # Every response has it.
        assert self.headers["X-Request-Id"]
        if self.status == 304:
            return  # there is no body
        kind = "application/json" if self.status < 400 else "application/problem+json"
        assert self.headers["Content-Type"].startswith(kind)

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def fields(self) -> set[str]:
        """The fields that a problem lists."""
        return {error["field"] for error in self.json["errors"]}


def status_and_code(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.json.get("code")


def connection_to(
    gateway: Program, tls: ssl.SSLContext | None, *, timeout: float
) -> HTTPConnection:
    """Return a connection to a gateway, which is opened by the first request."""
    if tls is None:
        return HTTPConnection("127.0.0.1", gateway.port, timeout=timeout)
    return HTTPSConnection("127.0.0.1", gateway.port, timeout=timeout, context=tls)


class Client:
    def __init__(
        self, gateway: Program, organization: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self.organization = organization
        self._connection = connection_to(gateway, tls, timeout=30)

    def close(self) -> None:
        """Close the connection, even while another thread waits for a response."""
        assert self._connection.sock is not None
        self._connection.sock.shutdown(socket.SHUT_RDWR)

    def send(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, target, body, named)
        answer = Answer(self._connection.getresponse())
        if answer.status >= 400:
            problem = answer.json
            assert problem["status"] == answer.status
            assert problem["requestId"] == answer.headers["X-Request-Id"]
            assert problem.keys() >= {"type", "title", "detail", "code"}
        return answer

    def post(self, body: object, query: str = "", **headers: str) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content_Type", "application/json")
        return self.send("POST", f"/api/appointments{query}", raw, **headers)

    def write(
        self, method: str, id: str, body: object, /, *, query: str = "", **headers: str
    ) -> Answer:
        """PUT or PATCH an appointment."""
        headers.setdefault("Content_Type", "application/json")
        target = f"/api/appointments/{id}?organizationId={quote(self.organization)}{query}"
        return self.send(method, target, json.dumps(body).encode(), **headers)

    def put(self, id: str, body: object, /, **options: str) -> Answer:
        return self.write("PUT", id, body, **options)

    def patch(self, id: str, body: object, /, **options: str) -> Answer:
        options.setdefault("Content_Type", "application/merge-patch+json")
        return self.write("PATCH", id, body, **options)

    def confirm(self, id: str, /, **query: object) -> Answer:
        return self.call("POST", f"/appointments/{id}:confirm", **query)

    def redact(self, id: str, /, **query: object) -> Answer:
        return self.call("POST", f"/appointments/{id}:redact", **query)

    def upsert(self, id: object = "a", /, **fields: object) -> Answer:
        headers = {name: str(fields.pop(name)) for name in list(fields) if name[0].isupper()}
        body = {"organizationId": self.organization, "start": START, "end": END, "id": id}
        return self.post({**body, **fields}, **headers)

    def call(self, method: str, path: str, /, **query: object) -> Answer:
        headers = {name: str(query.pop(name)) for name in list(query) if name[0].isupper()}
        query.setdefault("organizationId", self.organization)
        return self.send(method, f"/api{path}?{urlencode(query, doseq=True)}", None, **headers)

    def stored(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/appointments").json["appointments"]
        return found


class EventReader:
    """Parses a stream of events as a browser does (WHATWG HTML, 9.2.6)."""

    def __init__(self, lines: IO[bytes], last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: int | None = None
        """Milliseconds."""
        self.comments: list[str] = []
        self._lines = lines

    def event(self) -> dict[str, str] | None:
        """Return the next event with its id, event and data; None at the end of the stream."""
        id, kind, data = self.last_id, "", list[str]()
        while line := self._lines.readline().decode():
            name, _, value = line.rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            if line == "\n":
                self.last_id = id
                if data:
                    return {"id": id, "event": kind or "message", "data": "\n".join(data)}
                kind = ""
            elif not name:
                self.comments.append(value)
            elif name == "event":
                kind = value
            elif name == "data":
                data.append(value)
            elif name == "id" and "\0" not in value:
                id = value
            elif name == "retry" and value.isascii() and value.isdigit():
                self.retry = int(value)
        return None


class Events:
    """The stream of an organization's changes on one connection."""

    def __init__(
        self,
        gateway: Program,
        organization: str,
        after: int | None = None,
        filters: Mapping[str, object] | None = None,
        /,
        **headers: str,
    ) -> None:
        query = {"organizationId": organization, **(filters or {})}
        if after is not None:
            query["afterRevision"] = str(after)
        self._connection = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named = {"Accept": "text/event-stream", **named}
        path = f"/api/changes?{urlencode(query, doseq=True)}"
        self._connection.request("GET", path, headers=named)
        self.response = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        assert self.response.headers["Content-Type"] == "text/event-stream"
        self.reader = EventReader(self.response)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()

    def event(self) -> dict[str, str] | None:
        return self.reader.event()

    def events(self, count: int) -> list[dict[str, str]]:
        events = [self.event() for _ in range(count)]
        return [event for event in events if event is not None]
