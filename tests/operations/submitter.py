"""Submits operations and waits for their end, also while the service is unavailable."""

import time
from collections.abc import Iterable
from typing import Any, Self

import grpc
from google.longrunning import operations_pb2 as lro

from tests.api import Organization, Refusal, refusal, refusal_of
from tests.operations.submissions import Submissions, response_of


class Submitter:
    """A client of one service. Every call raises grpc.RpcError if it is refused."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def of(self, organization: str) -> Submissions:
        return Submissions(self._channel, organization)

    def organization(self, id: str) -> Organization:
        """The synchronous calls."""
        return self.of(id).org

    def upsert(self, organization: str, id: str, start: float, end: float, **fields: Any) -> str:
        """Submit an upsert; return the operation's name."""
        operation = self.of(organization).upsert(id, start, end, **fields)
        assert not operation.done
        name: str = operation.name
        return name

    def cancel(self, organization: str, id: str) -> str:
        name: str = self.of(organization).cancel(id).name
        return name

    def refused(self, organization: str, id: str, start: float, end: float) -> Refusal:
        """Submit a write that must be refused; return the refusal."""
        try:
            name = self.upsert(organization, id, start, end)
        except grpc.RpcError as error:
            return refusal(error)
        raise AssertionError(f"accepted: {name}")

    def get(self, name: str) -> lro.Operation:
        return self.of("").get(name)

    def ended(self, name: str, *, within: float = 20.0) -> lro.Operation:
        """Return the operation once it is done. Fails after `within` (seconds)."""
        give_up = time.monotonic() + within
        while True:
            try:
                operation = self.of("").wait(lro.Operation(name=name), timeout=0.5)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                operation = lro.Operation()
            if operation.done:
                return operation
            assert time.monotonic() < give_up, f"{name} is not done within {within:g} s"

    def all_ended(self, names: Iterable[str], *, within: float = 20.0) -> None:
        """Wait until all operations have ended with an appointment."""
        for name in names:
            response_of(self.ended(name, within=within))


def problem(operation: lro.Operation) -> Refusal:
    """Return the error that an operation ended with."""
    assert operation.HasField("error"), operation
    code = next(code for code in grpc.StatusCode if code.value[0] == operation.error.code)
    return refusal_of(operation.error, code)
