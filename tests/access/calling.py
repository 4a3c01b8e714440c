"""Makes calls with any credentials: plain gRPC, on a relay stream, and HTTP."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import grpc
from appointments.relay.v1 import relay_pb2
from appointments.relay.v1.relay_pb2_grpc import RelayServiceStub
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from local.programs import Program
from tests.access.everything import HttpCall, RpcCall

TIMEOUT = 20.0
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
AUTHORIZATION = "authorization"
BEARER = "Bearer "

# Of a header or of metadata; more than one if it is repeated.
Credentials = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response, or a refusal. `code` is that of gRPC or the HTTP status."""

    code: str
    reason: str
    content: bytes
    headers: Mapping[str, str]


def plain(channel: grpc.Channel, call: RpcCall, credentials: Credentials) -> Answer:
    """Make a call by itself; of a stream, read one message."""
    method: Any = channel.unary_stream(call.path)
    stream = method(
        call.request.SerializeToString(),
        metadata=[(AUTHORIZATION, each) for each in credentials],
        timeout=TIMEOUT,
    )
    try:
        content: bytes = next(stream)
    except grpc.RpcError as error:
        failed: Any = error
        trailing = dict(failed.trailing_metadata())
        status = Status.FromString(trailing.pop("grpc-status-details-bin", b""))
        return _refused(failed.code().name, status, trailing)
    stream.cancel()
    return Answer(code="OK", reason="", content=content, headers={})


def relayed(
    channel: grpc.Channel, calls: Sequence[RpcCall], credentials: Credentials
) -> list[Answer]:
    """Make calls on one relay stream."""
    metadata = [relay_pb2.Metadata(key=AUTHORIZATION, text=each) for each in credentials]
    sent = relay_pb2.RelayRequest(
        calls=[
            relay_pb2.Call(
                number=number,
                method=call.path,
                request=call.request.SerializeToString(),
                metadata=metadata,
            )
            for number, call in enumerate(calls, 1)
        ]
    )
    answers: dict[int, Answer] = {}
    for message in RelayServiceStub(channel).Relay(iter([sent]), timeout=TIMEOUT):
        for answer in message.answers:
            revision = {"organization-revision": str(answer.organization_revision)}
            headers = revision if answer.HasField("organization_revision") else {}
            answers[answer.number] = (
                _refused(CODES[answer.error.code], answer.error, headers)
                if answer.HasField("error")
                else Answer(code="OK", reason="", content=answer.response, headers=headers)
            )
    return [answers[number] for number, _ in enumerate(calls, 1)]


def _refused(code: str, status: Status, headers: Mapping[str, str]) -> Answer:
    info = ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    content = status.SerializeToString()
    return Answer(code=code, reason=info.reason, content=content, headers=headers)


class Browser:
    """Makes calls by HTTP, over one connection at a time."""

    def __init__(self, gateway: Program) -> None:
        self._connection = HTTPConnection("127.0.0.1", gateway.port, timeout=TIMEOUT)

    def close(self) -> None:
        self._connection.close()

    def send(self, call: HttpCall, credentials: Credentials) -> Answer:
        """Make a call; of a stream, read only the headers."""
        connection = self._connection
        connection.putrequest(call.method, call.target)
        for name, value in call.headers.items():
            connection.putheader(name, value)
        for each in credentials:
            by_password = call.password and each.startswith(BEARER)
            connection.putheader("Authorization", _as_password(each) if by_password else each)
        if call.body is not None:
            connection.putheader("Content-Length", str(len(call.body)))
        connection.endheaders(call.body)
        response = connection.getresponse()
        headers = dict(response.getheaders())
        if headers.get("Content-Type") == "text/event-stream":
            content = b""
            connection.close()
        else:
            content = response.read()
        is_problem = headers.get("Content-Type") == "application/problem+json"
        reason = json.loads(content)["code"] if is_problem and content else ""
        return Answer(code=str(response.status), reason=reason, content=content, headers=headers)


def _as_password(bearer: str) -> str:
    token = bearer.removeprefix(BEARER)
    return f"Basic {b64encode(f'anyone:{token}'.encode()).decode()}"


def comparable(answer: Answer) -> Answer:
    """Return the answer without what differs between any two requests."""
    content = answer.content
    if answer.headers.get("Content-Type") == "application/problem+json" and content:
        problem = json.loads(content)
        problem.pop("requestId")
        content = json.dumps(problem).encode()
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name.lower() not in {"x-request-id", "date"}
    }
    return Answer(code=answer.code, reason=answer.reason, content=content, headers=headers)
