"""Every RPC has a rule, which looks at every organization that a request can name."""

from collections.abc import Iterator
from typing import Any

import pytest
from appointments.v1 import access_pb2
from appointments.v1 import appointment_service_pb2 as rpc
from appointments.v1.appointment_pb2 import Appointment
from google.longrunning import operations_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from service.access.principal import ADMIN, READ, SCOPES, WEBHOOKS, WRITE, Principal
from service.errors import InvalidFields, PermissionDenied
from service.metrics import Metrics
from service.rpc.access import RuleMissing, actor_of, permit, rule_of
from service.rpc.handler import CallHandler
from service.server import APPOINTMENTS, OPERATIONS
from service.server import WEBHOOKS as WEBHOOK_SERVICE

METHODS = [method for service in (APPOINTMENTS, WEBHOOK_SERVICE) for method in service.methods]


def principal(*scopes: str, organizations: frozenset[str] | None = None) -> Principal:
    return Principal(
        subject="booking",
        credential_id="key:1",
        organizations=organizations,
        scopes=frozenset(scopes),
    )


def paths(message: Descriptor, within: tuple[Descriptor, ...] = ()) -> Iterator[list[str]]:
    """Return the paths of all fields named organization_id, in a message and those within it."""
    for field in message.fields:
        if field.name == "organization_id":
            yield [field.name]
        elif field.message_type is not None and field.message_type not in within:
            for path in paths(field.message_type, (*within, message)):
                yield [field.name, *path]


def name_at(message: Any, path: list[str]) -> None:
    """Set the field at a path to "theirs"."""
    for name in path[:-1]:
        child = getattr(message, name)
        message = child.add() if message.DESCRIPTOR.fields_by_name[name].is_repeated else child
    message.organization_id = "theirs"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_every_organization_that_a_request_names_is_looked_at(method: MethodDescriptor) -> None:
    found = list(paths(method.input_type))
    assert found
    for path in found:
        request = GetMessageClass(method.input_type)()
        name_at(request, path)
        rule = rule_of(method)(request)
        assert rule.scope in SCOPES
        assert list(rule.organizations(request)) == ["theirs"], path


@pytest.mark.parametrize("name", ["GetOperation", "WaitOperation", "ListOperations"])
def test_operations_are_of_the_organization_in_their_name(name: str) -> None:
    method = OPERATIONS.methods_by_name[name]
    request = GetMessageClass(method.input_type)(name="organizations/a%2Fb/operations/1")
    rule = rule_of(method)(request)
    assert (rule.scope, list(rule.organizations(request))) == (WRITE, ["a/b"])
    with pytest.raises(InvalidFields, match="must begin with organizations/"):
        rule.organizations(operations_pb2.GetOperationRequest(name="operations/1"))


def test_a_batch_needs_the_organization_of_each_item() -> None:
    request = rpc.BatchUpsertAppointmentsRequest(
        requests=[
            rpc.BatchUpsertAppointmentsRequest.Item(appointment=Appointment(organization_id=id))
            for id in ("a", "b", "a")
        ]
    )
    rule = rule_of(APPOINTMENTS.methods_by_name["BatchUpsertAppointments"])(request)
    assert sorted(rule.organizations(request)) == ["a", "b"]


def test_a_submission_needs_what_the_write_needs_that_it_carries() -> None:
    submit = rule_of(APPOINTMENTS.methods_by_name["SubmitAppointment"])
    for field in rpc.SubmitAppointmentRequest.DESCRIPTOR.oneofs_by_name["write"].fields:
        request = rpc.SubmitAppointmentRequest()
        getattr(request, field.name).SetInParent()
        [method] = [each for each in METHODS if each.input_type is field.message_type]
        assert submit(request).scope == rule_of(method)(getattr(request, field.name)).scope
    assert submit(rpc.SubmitAppointmentRequest()).scope == WRITE


def changed(edit: Any) -> ServiceDescriptor:
    """Return a copy of AppointmentService after an edit of the descriptors of its methods."""
    file = FileDescriptorProto(name="changed.proto", package="changed", syntax="proto3")
    file.dependency.append(APPOINTMENTS.file.name)
    APPOINTMENTS.CopyToProto(file.service.add())
    edit({method.name: method.options for method in file.service[0].method})
    pool = DescriptorPool()
    waiting = [APPOINTMENTS.file]
    files = {}
    while waiting:
        each = waiting.pop()
        files[each.name] = each
        waiting += each.dependencies
    for each in sorted(files.values(), key=lambda each: len(_closure(each))):
        pool.AddSerializedFile(each.serialized_pb)
    file.dependency.append("google/longrunning/operations.proto")
    pool.AddSerializedFile(file.SerializeToString())
    service: ServiceDescriptor = pool.FindServiceByName("changed.AppointmentService")
    return service


def _closure(file: Any) -> set[str]:
    return {file.name}.union(*map(_closure, file.dependencies))


class Servicer:
    def __getattr__(self, name: str) -> object:
        return name


@pytest.mark.parametrize(
    ("method", "rule", "message"),
    [
        ("GetAppointment", None, r"needs the option \(appointments.v1.access\)"),
        ("GetAppointment", {"organization": "organization_id"}, "the scope '' is not known"),
        ("GetAppointment", {"scope": "appointments.raed"}, "the scope 'appointments.raed' is not"),
        ("GetAppointment", {"scope": READ, "organization": "id"}, "id is not the organization"),
        ("UpsertAppointment", {"scope": WRITE}, "organization_id is not the organization"),
        ("SubmitAppointment", {"scope": WRITE}, "organization_id is not the organization"),
        ("SubmitAppointment", {"scope": WRITE, "carried": "read"}, "read is no oneof"),
        ("ConfirmAppointment", None, "needs the option"),
    ],
)
def test_the_service_does_not_start_if_an_rpc_has_no_rule_that_fits(
    method: str, rule: dict[str, str] | None, message: str
) -> None:
    def edit(options: dict[str, Any]) -> None:
        options[method].ClearExtension(access_pb2.access)
        if rule is not None:
            options[method].Extensions[access_pb2.access].MergeFrom(access_pb2.AccessRule(**rule))

    with pytest.raises(RuleMissing, match=message):
        CallHandler(
            {changed(edit): Servicer()}, Metrics(), timeout=1, send_timeout=1, max_bytes=1000
        )
    CallHandler(
        {changed(lambda _: None): Servicer()}, Metrics(), timeout=1, send_timeout=1, max_bytes=1000
    )


def test_a_caller_needs_the_scope_and_the_organization() -> None:
    rule_for = rule_of(APPOINTMENTS.methods_by_name["UpsertAppointment"])
    ours = rpc.UpsertAppointmentRequest(appointment=Appointment(organization_id="ours"))
    default = rpc.UpsertAppointmentRequest()
    rule = rule_for(ours)
    only_ours = frozenset({"ours"})
    permit(rule, principal(WRITE), ours)
    permit(rule, principal(WRITE), default)
    permit(rule, principal(WRITE, organizations=only_ours), ours)
    permit(rule, principal(WRITE, organizations=frozenset({"default"})), default)
    for scopes in ((), (READ,), (READ, WEBHOOKS, ADMIN)):
        with pytest.raises(PermissionDenied, match=r"lacks the scope appointments\.write"):
            permit(rule, principal(*scopes), ours)
    with pytest.raises(PermissionDenied, match="not for the organization that the request names"):
        permit(rule, principal(WRITE, organizations=frozenset()), ours)
    with pytest.raises(PermissionDenied, match="not for the organization default; name another"):
        permit(rule, principal(WRITE, organizations=only_ours), default)


def test_only_an_admin_states_the_actor() -> None:
    assert actor_of(principal(WRITE), "") == "booking"
    assert actor_of(principal(WRITE), "booking") == "booking"
    assert actor_of(principal(WRITE, ADMIN), "somebody") == "somebody"
    with pytest.raises(PermissionDenied, match="X-Actor needs the scope admin; leave it out"):
        actor_of(principal(WRITE), "somebody")
