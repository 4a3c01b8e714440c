"""Callers and services that disappear silently: powered off, stopped, or unreachable."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from tests.conftest import StartProgram
from tests.observing import metric, until
from tests.rest_client import Client

WATCHERS = "appointments_watchers"


class Wire:
    """A proxy to a program. It can be cut without closing either connection."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []
        self.cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._program.port))
        self._ends = [near, far]
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            if self.cut.is_set():
                return
            sink.sendall(data)


@contextmanager
def wire_to(program: Program) -> Iterator[Wire]:
    wire = Wire(program)
    try:
        yield wire
    finally:
        wire.close()


def test_a_watcher_that_vanished_leaves_its_place(
    start_service: StartProgram, organization: str
) -> None:
    service = start_service()
    with wire_to(service) as wire, grpc.insecure_channel(wire.address) as channel:
        request = rpc.WatchAppointmentsRequest(organization_id=organization)
        watching = AppointmentServiceStub(channel).WatchAppointments(request)
        next(watching)
        assert metric(service, WATCHERS) == 1
        wire.cut.set()
        until(lambda: metric(service, WATCHERS) == 0, within=45)


def test_a_service_that_vanished_is_noticed_while_nothing_is_asked(
    service: Program, start_gateway: StartProgram, organization: str
) -> None:
    with wire_to(service) as wire:
        gateway = start_gateway(SERVICE_ADDRESS=wire.address)
        assert Client(gateway, organization).call("GET", "/appointments").status == 200
        wire.cut.set()
        gateway.wait_for_event(lambda event: event["event"] == "relay ended", within=60)
