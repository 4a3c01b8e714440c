"""What a caller needs for a call, and whether it has that.

Everything is decided from the request alone, before anything is read from the database. So a
refusal is the same whether or not what the request names exists.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from appointments.v1 import access_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from service.access.principal import ADMIN, SCOPES, WRITE, Principal
from service.domain import DEFAULT_ORGANIZATION
from service.errors import PermissionDenied
from service.messages import organization_of
from service.operations.operation import organization_in
from service.rpc.context import CallContext

ORGANIZATION = "organization_id"

# Returns the caller of a call. Raises Unauthenticated, or AccessUnavailable.
Authenticate = Callable[[CallContext], Awaitable[Principal]]
# Returns the organizations that a request names.
Organizations = Callable[[Any], Collection[str]]


class RuleMissing(Exception):
    """An RPC has no rule of access, or one that does not fit its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a call of an RPC needs: a scope, for the organizations that its request names."""

    scope: str
    organizations: Organizations


# Returns the rule for a request of an RPC.
RuleOf = Callable[[Any], Rule]

# The methods of google.longrunning.Operations, whose proto cannot have the option. Operations
# are for those who submit writes: they contain what the synchronous write returns.
_OPERATION = Rule(scope=WRITE, organizations=lambda request: (organization_in(request.name),))
_STANDARD = {
    f"google.longrunning.Operations.{name}": _OPERATION
    for name in ("GetOperation", "WaitOperation", "ListOperations")
}


def rule_of(method: MethodDescriptor) -> RuleOf:
    """Return the rule of an RPC. Raises RuleMissing."""
    standard = _STANDARD.get(method.full_name)
    if standard is not None:
        return lambda _: standard
    if not method.GetOptions().HasExtension(access_pb2.access):
        raise RuleMissing(f"{method.full_name} needs the option (appointments.v1.access)")
    option = method.GetOptions().Extensions[access_pb2.access]
    if option.carried:
        return _carried(method, option)
    rule = _rule(method, option)
    return lambda _: rule


def permit(rule: Rule, principal: Principal, request: Any) -> None:  # noqa: ANN401
    """Check that a caller may make a request. Raises PermissionDenied."""
    if rule.scope not in principal.scopes:
        raise PermissionDenied(f"the credential lacks the scope {rule.scope}", scope=rule.scope)
    if principal.organizations is None:
        return
    for organization_id in rule.organizations(request):
        if organization_id not in principal.organizations:
            raise PermissionDenied(
                "the credential is not for the organization default; name another one in the"
                " request"
                if organization_id == DEFAULT_ORGANIZATION
                else "the credential is not for the organization that the request names"
            )


def actor_of(principal: Principal, stated: str) -> str:
    """Return the actor of a caller's writes. Raises PermissionDenied if it may not state it."""
    if not stated or stated == principal.subject:
        return principal.subject
    if ADMIN not in principal.scopes:
        raise PermissionDenied(
            f"X-Actor needs the scope {ADMIN}; leave it out, the actor is the credential's subject",
            scope=ADMIN,
        )
    return stated


def _rule(method: MethodDescriptor, option: access_pb2.AccessRule) -> Rule:
    path = option.organization or ORGANIZATION
    try:
        organizations = _organizations_at(method.input_type, path)
    except LookupError as error:
        raise RuleMissing(
            f"{method.full_name}: {path} is not the organization of {method.input_type.full_name}"
        ) from error
    _check_scope(method, option)
    return Rule(scope=option.scope, organizations=organizations)


def _carried(method: MethodDescriptor, option: access_pb2.AccessRule) -> RuleOf:
    """Return the rule of an RPC whose requests carry those of others."""
    _check_scope(method, option)
    oneof = method.input_type.oneofs_by_name.get(option.carried)
    if oneof is None:
        raise RuleMissing(f"{method.full_name}: {option.carried} is no oneof of its request")
    owners = {each.input_type.full_name: each for each in method.containing_service.methods}
    rules: dict[str | None, Rule] = {
        # The servicer refuses it.
        None: Rule(scope=option.scope, organizations=lambda _: ())
    }
    for field in oneof.fields:
        owner = owners.get(field.message_type.full_name) if field.message_type else None
        if owner is None:
            raise RuleMissing(f"{method.full_name}: {field.name} is no request of another RPC")
        rules[field.name] = _of_field(
            field.name, _rule(owner, owner.GetOptions().Extensions[access_pb2.access])
        )
    return lambda request: rules[request.WhichOneof(option.carried)]


def _check_scope(method: MethodDescriptor, option: access_pb2.AccessRule) -> None:
    if option.scope not in SCOPES:
        raise RuleMissing(f"{method.full_name}: the scope {option.scope!r} is not known")


def _of_field(name: str, rule: Rule) -> Rule:
    return Rule(
        scope=rule.scope,
        organizations=lambda request: rule.organizations(getattr(request, name)),
    )


def _organizations_at(message: Descriptor, path: str) -> Organizations:
    """Return what reads the organizations at a path. Raises LookupError for a wrong one."""
    name, _, rest = path.partition(".")
    field: FieldDescriptor = message.fields_by_name[name]
    if not rest:
        if name != ORGANIZATION or field.is_repeated:
            raise LookupError(path)
        return lambda request: (organization_of(request),)
    if field.message_type is None:
        raise LookupError(path)
    inner = _organizations_at(field.message_type, rest)
    if field.is_repeated:
        return lambda request: {
            organization_id for item in getattr(request, name) for organization_id in inner(item)
        }
    return lambda request: inner(getattr(request, name))
