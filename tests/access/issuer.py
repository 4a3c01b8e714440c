"""An issuer of tokens with keys of its own, and services that accept them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example/"
AUDIENCE = "appointments"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def new_private_key(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm.startswith("ES"):
        curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        return ec.generate_private_key(curves[algorithm])
    return rsa.generate_private_key(65537, 2048)


class SigningKey:
    """A private key under an id, None for none."""

    def __init__(
        self, id: str | None, algorithm: str = "ES256", private: PrivateKey | None = None
    ) -> None:
        self.id = id
        self.algorithm = algorithm
        self.private = private or new_private_key(algorithm)

    def jwk(self, **members: Any) -> dict[str, Any]:
        """Return the public key as a member of a JWK set. None leaves a member out."""
        public = self.private.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            text = RSAAlgorithm.to_jwk(public)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            text = ECAlgorithm.to_jwk(public)
        else:
            text = OKPAlgorithm.to_jwk(public)
        data = {**json.loads(text), "kid": self.id, "use": "sig", **members}
        data.pop("key_ops", None)
        return {name: value for name, value in data.items() if value is not None}

    def token(
        self,
        *organizations: str,
        scopes: str = "appointments.read appointments.write",
        lifetime: float = 600,
        headers: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a token for organizations. Claims that are None are left out."""
        given = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": time.time() + lifetime,
            "scope": scopes,
            "organizations": list(organizations),
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in given.items() if value is not None},
            self.private,
            algorithm=self.algorithm,
            headers={**({} if self.id is None else {"kid": self.id}), **(headers or {})},
        )


def key_set(*keys: SigningKey | dict[str, Any]) -> str:
    """Return a JWK set."""
    return json.dumps({"keys": [each if isinstance(each, dict) else each.jwk() for each in keys]})


def write_keys(path: Path, *keys: SigningKey | dict[str, Any]) -> None:
    """Replace the file of a JWK set at once."""
    new = path.with_suffix(".new")
    new.write_text(key_set(*keys))
    new.rename(path)


def settings(path: Path, **others: str) -> dict[str, str]:
    """Return the settings of a service that accepts the issuer's tokens."""
    return {
        "ACCESS_CONTROL": "on",
        "JWT_KEYS_FILE": str(path),
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": AUDIENCE,
        "JWT_LEEWAY": "0",
        **others,
    }
