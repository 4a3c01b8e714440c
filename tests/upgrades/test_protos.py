"""The protos keep what the last release promised. `protos/released.binpb` has its descriptors."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from appointments.relay.v1 import relay_pb2
from appointments.v1 import appointment_service_pb2, webhook_service_pb2
from google.api import annotations_pb2, http_pb2
from google.longrunning import operations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from local.programs import ROOT

RELEASED = ROOT / "protos" / "released.binpb"
BUF = Path(sys.executable).with_name("buf")


def released() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RELEASED.read_bytes())


def current_files() -> Iterator[FileDescriptorProto]:
    for module in (appointment_service_pb2, webhook_service_pb2, relay_pb2, operations_pb2):
        yield FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


def file_of(files: FileDescriptorSet, name: str) -> FileDescriptorProto:
    (found,) = (file for file in files.file if file.name == f"appointments/v1/{name}.proto")
    return found


def remove_field(files: FileDescriptorSet) -> None:
    appointment = file_of(files, "appointment").message_type[0]
    assert appointment.name == "Appointment"
    del appointment.field[1]


def renumber_field(files: FileDescriptorSet) -> None:
    file_of(files, "appointment").message_type[0].field[1].number = 999


def remove_method(files: FileDescriptorSet) -> None:
    del file_of(files, "appointment_service").service[0].method[0]


def rename_value(files: FileDescriptorSet) -> None:
    file_of(files, "appointment").message_type[0].enum_type[0].value[1].name = "BOOKED"


def nothing(_: FileDescriptorSet) -> None:
    pass


@pytest.mark.parametrize(
    "change", [nothing, remove_field, renumber_field, remove_method, rename_value]
)
def test_what_breaks_callers_is_found(
    change: Callable[[FileDescriptorSet], None], tmp_path: Path
) -> None:
    files = released()
    change(files)
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(files.SerializeToString())
    done = subprocess.run(
        [BUF, "breaking", changed, "--against", RELEASED, "--config", ROOT / "protos/buf.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if change is nothing else 100), done.stdout + done.stderr


def routes(files: Iterator[FileDescriptorProto]) -> set[tuple[str, str, str]]:
    """Return the HTTP method, the path and the RPC of every route."""
    found = set()
    for file in files:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                for each in (rule, *rule.additional_bindings):
                    if kind := each.WhichOneof("pattern"):
                        assert isinstance(each, http_pb2.HttpRule)
                        path = str(getattr(each, kind))
                        found.add((kind, path, f"{service.name}.{method.name}"))
    return found


def test_every_released_route_is_still_there() -> None:
    """buf compares no annotations."""
    before = routes(iter(released().file))
    assert ("get", "/api/appointments", "AppointmentService.ListAppointments") in before
    assert before <= routes(current_files())
