"""Load that goes on until told to stop."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import grpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from tests.api import Organization


class Load:
    """Writers that go on until told to stop, and remember every answer."""

    def __init__(self, address: str, organization: str, writers: int = 8) -> None:
        self.accepted: list[str] = []
        self.failed: list[tuple[str, grpc.StatusCode]] = []
        self._address = address
        self._organization = organization
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(writers)
        self._writers = [self._pool.submit(self._write, n) for n in range(writers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def stop(self) -> None:
        """Stop, and fail with what a writer failed with."""
        self._stop.set()
        for writer in self._writers:
            writer.result()

    def _write(self, writer: int) -> None:
        with grpc.insecure_channel(self._address) as channel:
            org = Organization(AppointmentServiceStub(channel), self._organization)
            number = 0
            while not self._stop.is_set():
                number += 1
                id = f"{writer}-{number}"
                try:
                    org.upsert(id, 0, 1, resource_id=id)
                except grpc.RpcError as error:
                    self.failed.append((id, error.code()))
                    if error.code() == grpc.StatusCode.UNAVAILABLE:
                        self._stop.wait(0.02)
                else:
                    self.accepted.append(id)
