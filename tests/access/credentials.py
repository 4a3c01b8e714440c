"""Credentials that are right, and every way of being wrong."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import psycopg
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from jwt.utils import base64url_encode

from service.access.api_key import new_id, new_key
from service.access.key_table import KeyTable
from service.access.principal import SCOPES
from tests.access.calling import Credentials

ISSUER, AUDIENCE = "https://issuer.example", "appointments"
KEY_ID = "one"
UNAUTHENTICATED, PERMISSION_DENIED = "UNAUTHENTICATED", "PERMISSION_DENIED"


class Issuer:
    """Makes tokens, as an authorization server does."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key: Any = self.key.public_key()

    def settings(self, file: Path) -> dict[str, str]:
        """Write the JWK set, and return the settings of a service that trusts it."""
        published = RSAAlgorithm.to_jwk(self.public_key, as_dict=True)
        file.write_text(json.dumps({"keys": [{**published, "kid": KEY_ID, "use": "sig"}]}))
        return {
            "ACCESS_CONTROL": "on",
            "JWT_KEYS_FILE": str(file),
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
        }

    def token(
        self,
        *,
        key: Any = None,
        algorithm: str = "RS256",
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a token for all organizations with all scopes, with changes. None: left out."""
        all_claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": int(time.time()) + 3600,
            "organizations": "*",
            "scope": " ".join(SCOPES),
            **claims,
        }
        given = {name: value for name, value in all_claims.items() if value is not None}
        named = {"kid": KEY_ID, **(header or {})}
        headers = {name: value for name, value in named.items() if value is not None}
        return jwt.encode(given, key or self.key, algorithm=algorithm, headers=headers)


class Keys:
    """Makes API keys, as `python -m service keys` does."""

    def __init__(self, url: str) -> None:
        self._url = url

    def key(
        self,
        *,
        organizations: Sequence[str] | None = None,
        scopes: Sequence[str] = SCOPES,
        expires_in: timedelta | None = None,
        revoked: bool = False,
    ) -> str:
        with psycopg.connect(self._url, autocommit=True) as connection:
            table = KeyTable(connection)
            key = table.create(
                subject="grace", organizations=organizations, scopes=scopes, expires_in=expires_in
            )
            if revoked:
                table.revoke(key.id)
        return key.text

    def revoke(self, text: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            KeyTable(connection).revoke(id_of(text))


def id_of(key: str) -> str:
    return key.split("_")[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """Credentials that must be refused, except for calls that need one of the scopes."""

    credentials: Credentials
    code: str = UNAUTHENTICATED
    scopes: Sequence[str] = ()


def bearer(token: str, **options: Any) -> Wrong:
    return Wrong(credentials=(f"Bearer {token}",), **options)


def wrong_credentials(issuer: Issuer, keys: Keys) -> Iterator[tuple[str, Wrong]]:
    """Yield every kind by its name."""
    good = issuer.token()
    header, claims, signature = good.split(".")
    yield "none", Wrong(credentials=())
    for name, text in {
        "nothing after the scheme": "Bearer",
        "another scheme": f"Token {good}",
        "no scheme": good,
        "two words": f"Bearer {good} {good}",
        "no token": "Bearer nothing",
        "Basic": "Basic YTpi",
        "quotes": f'Bearer "{good}"',
    }.items():
        yield name, Wrong(credentials=(text,))
    yield "repeated", Wrong(credentials=(f"Bearer {good}", f"Bearer {good}"))
    yield from _wrong_tokens(issuer)
    yield "no signature", bearer(f"{header}.{claims}.")
    yield "another signature", bearer(f"{header}.{claims}.{signature[::-1]}")
    others = issuer.token(sub="eve").split(".")
    yield "another token's signature", bearer(f"{header}.{claims}.{others[2]}")
    yield from _wrong_keys(keys)
    for kind, make in {"token": _token_of(issuer), "key": keys.key}.items():
        yield (
            f"{kind} of another organization",
            bearer(make(organizations=["other", "their", "theirs "]), code=PERMISSION_DENIED),
        )
        yield (
            f"{kind} of no organization",
            bearer(make(organizations=[]), code=PERMISSION_DENIED),
        )
        limited = {f"{kind} with {scope} only": [scope] for scope in SCOPES}
        for scope in SCOPES:
            limited[f"{kind} without {scope}"] = [each for each in SCOPES if each != scope]
        limited[f"{kind} without scopes"] = []
        limited[f"{kind} with unknown scopes"] = ["appointments", "Appointments.read", "*"]
        for name, scopes in limited.items():
            yield name, bearer(make(scopes=scopes), code=PERMISSION_DENIED, scopes=scopes)


def _token_of(issuer: Issuer) -> Any:
    def token(**options: Any) -> str:
        if "scopes" in options:
            options["scope"] = " ".join(options.pop("scopes"))
        return issuer.token(**options)

    return token


def _wrong_tokens(issuer: Issuer) -> Iterator[tuple[str, Wrong]]:
    now = int(time.time())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    secret = issuer.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    embedded = RSAAlgorithm.to_jwk(stranger.public_key(), as_dict=True)
    for name, token in {
        "expired": issuer.token(exp=now - 60),
        "expired for an hour": issuer.token(exp=now - 3600),
        "not valid yet": issuer.token(nbf=now + 600),
        "without an end": issuer.token(exp=None),
        "wrong audience": issuer.token(aud="other"),
        "wrong audiences": issuer.token(aud=["other", "appointments2"]),
        "no audience": issuer.token(aud=None),
        "wrong issuer": issuer.token(iss=f"{ISSUER}/"),
        "no issuer": issuer.token(iss=None),
        "no subject": issuer.token(sub=None),
        "another algorithm of the key": issuer.token(algorithm="RS512"),
        "another key": issuer.token(key=stranger),
        "another key in its header": issuer.token(
            key=stranger, header={"jwk": embedded, "kid": None}
        ),
        "a key of another type": issuer.token(
            key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"
        ),
        "wrong kid": issuer.token(header={"kid": "two"}),
        "another key and a wrong kid": issuer.token(key=stranger, header={"kid": "two"}),
        "organizations as a number": issuer.token(organizations=1),
    }.items():
        yield name, bearer(token)
    for algorithm in ("none", "None", "NONE"):
        yield f"alg {algorithm}", bearer(_unsigned(issuer.token(), algorithm) + ".")
    signed = _unsigned(issuer.token(), "HS256")
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    # PyJWT itself refuses a public key as secret; so prepare_key is left out.
    for name, key in {"PEM": secret, "PEM without its last line": secret.rstrip()}.items():
        signature = base64url_encode(hmac.sign(signed.encode(), key)).decode()
        yield f"HMAC with the public key, {name}", bearer(f"{signed}.{signature}")


def _unsigned(token: str, algorithm: str) -> str:
    """Return header and claims of a token, with another algorithm in its header."""
    _, claims, _ = token.split(".")
    header = {"alg": algorithm, "typ": "JWT", "kid": KEY_ID}
    return f"{base64url_encode(json.dumps(header).encode()).decode()}.{claims}"


def _wrong_keys(keys: Keys) -> Iterator[tuple[str, Wrong]]:
    good = keys.key()
    for name, key in {
        "revoked key": keys.key(revoked=True),
        "expired key": keys.key(expires_in=timedelta(seconds=-1)),
        "unknown key": new_key(new_id()).text,
        "known key with another secret": new_key(id_of(good)).text,
        "mistyped key": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "key in capitals": good.upper(),
        "key and more": f"{good}x",
    }.items():
        yield name, bearer(key)
