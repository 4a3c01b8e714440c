"""Credentials in the OpenAPI document: how they are sent, and the scope of each operation."""

from appointments.v1 import access_pb2
from google.protobuf.descriptor import MethodDescriptor

from gateway.openapi.schemas import Schema

BEARER, PASSWORD = "Bearer", "Password"

SECURITY_SCHEMES: dict[str, Schema] = {
    BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a JWT of the issuer that the operator trusts, as"
        " `Authorization: Bearer ...`. It names organizations and scopes. Without access control,"
        " which the operator turns on, credentials are ignored.",
    },
    PASSWORD: {
        "type": "http",
        "scheme": "basic",
        "description": "An API key as the password, for calendar programs that can send no other"
        " credentials. The name of the user is ignored.",
    },
}


def scope_of(rpc: MethodDescriptor) -> str:
    """Return the scope that an RPC needs while access control is on."""
    return rpc.GetOptions().Extensions[access_pb2.access].scope


def guarded(description: str, scope: str, *schemes: str) -> Schema:
    """Return the `description` and the `security` of an operation that needs a scope.

    Callers use one of the schemes, by default a bearer token, or none without access control. The
    description names the scope: only the scopes of OAuth have a place in `security`.
    """
    needs = f"With access control, it needs the scope `{scope}`."
    return {
        "description": f"{description}\n\n{needs}" if description else needs,
        "security": [*({scheme: []} for scheme in schemes or (BEARER,)), {}],
    }
