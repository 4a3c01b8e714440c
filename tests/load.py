"""Continuous load."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

import grpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.api import Organization
from tests.rest_client import Client

# By default, channels share one connection, which leads to one process.
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
# For slow readers: what tests write is so repetitive that compressed, buffers could hold it all.
UNCOMPRESSED = (*OWN_CONNECTION, ("grpc.compression_enabled_algorithms_bitset", 1))

Failure = TypeVar("Failure")


class _Load(Generic[Failure]):
    """Writers that write until `stop`, and record every result."""

    def __init__(self, organization: str, writers: int) -> None:
        self.accepted: list[str] = []
        self.failed: list[tuple[str, Failure]] = []
        self.organization = organization
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(writers)
        self._writers = [self._pool.submit(self._write, n) for n in range(writers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def stop(self) -> None:
        """Stop. Raises the error of a writer that failed."""
        self._stop.set()
        for writer in self._writers:
            writer.result()

    def _write(self, writer: int) -> None:
        with self._connected() as upsert:
            number = 0
            while not self._stop.is_set():
                number += 1
                id = f"{writer}-{number}"
                failure = upsert(id)
                if failure is None:
                    self.accepted.append(id)
                else:
                    self.failed.append((id, failure))
                    self._stop.wait(0.02)

    @contextmanager
    def _connected(self) -> Iterator[Callable[[str], Failure | None]]:
        """Yield a function that upserts an id and returns the failure, or None."""
        raise NotImplementedError


def connect(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, OWN_CONNECTION)


class Load(_Load[grpc.StatusCode]):
    """Load by gRPC. Failures are status codes."""

    def __init__(
        self,
        address: str,
        organization: str,
        writers: int = 8,
        connect: Callable[[str], grpc.Channel] = connect,
    ) -> None:
        self._connect = connect
        self._address = address
        super().__init__(organization, writers)

    @contextmanager
    def _connected(self) -> Iterator[Callable[[str], grpc.StatusCode | None]]:
        with self._connect(self._address) as channel:
            org = Organization(AppointmentServiceStub(channel), self.organization)

            def upsert(id: str) -> grpc.StatusCode | None:
                try:
                    org.upsert(id, 0, 1, resource_id=id)
                except grpc.RpcError as error:
                    code: grpc.StatusCode = error.code()
                    return code
                return None

            yield upsert


class RestLoad(_Load[int]):
    """Load by REST. Failures are HTTP statuses."""

    def __init__(self, gateway: Program, organization: str, writers: int = 8) -> None:
        self._gateway = gateway
        super().__init__(organization, writers)

    @contextmanager
    def _connected(self) -> Iterator[Callable[[str], int | None]]:
        client = Client(self._gateway, self.organization)

        def upsert(id: str) -> int | None:
            status = client.upsert(id, resourceId=id).status
            return None if status == 201 else status

        yield upsert
