"""Calls a service with a credential, by gRPC."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import psycopg
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_service_pb2_grpc import AppointmentServiceStub

from local.programs import Program
from service.access.api_key import ApiKey
from service.access.key_table import KeyTable
from service.access.principal import READ, WRITE
from tests.api import Refusal, refusal, upsert_request

Metadata = tuple[tuple[str, str], ...]


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls for one organization."""

    stub: AppointmentServiceStub
    organization: str

    def request(self, id: str = "a") -> rpc.GetAppointmentRequest:
        return rpc.GetAppointmentRequest(organization_id=self.organization, id=id)

    def get(self, metadata: Metadata, id: str = "a") -> Refusal | None:
        """Read an appointment. Returns the refusal, None if it was found."""
        try:
            self.stub.GetAppointment(self.request(id), metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return refusal(error)
        return None

    def reason(self, metadata: Metadata, id: str = "a") -> str:
        """Read an appointment. Returns the reason of the refusal, "" if it was found."""
        refused = self.get(metadata, id)
        return "" if refused is None else refused.reason

    def write(self, metadata: Metadata, id: str = "a", minute: int = 0) -> str:
        """Write an appointment. Returns the reason of the refusal, "" if it was written."""
        request = upsert_request(self.organization, id, minute)
        try:
            self.stub.UpsertAppointment(request, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return refusal(error).reason
        return ""

    def actors(self, metadata: Metadata) -> list[str]:
        """Return who made the changes of the organization."""
        request = rpc.ListChangesRequest(organization_id=self.organization)
        response = self.stub.ListChanges(request, metadata=metadata, timeout=10)
        return [entry.actor for entry in response.entries]


@contextmanager
def calling(service: Program, organization: str) -> Iterator[Caller]:
    with grpc.insecure_channel(service.address) as channel:
        yield Caller(AppointmentServiceStub(channel), organization)


@contextmanager
def key_table(url: str) -> Iterator[KeyTable]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield KeyTable(connection)


def create(table: KeyTable, *organizations: str, scopes: tuple[str, ...] = (READ, WRITE)) -> ApiKey:
    """Create a key for organizations, or for all without any."""
    return table.create(
        subject="booking", organizations=organizations or None, scopes=scopes, expires_in=None
    )
