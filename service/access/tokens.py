"""Checks tokens: JWTs (RFC 7519) as OAuth 2.0 access tokens (RFC 9068)."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from time import time
from typing import Any

import jwt

from service import rules
from service.access.principal import Principal
from service.access.signing_keys import SigningKeys
from service.errors import Unauthenticated

# Characters. Gateways and gRPC accept headers of about 8 KiB.
MAX_LENGTH = 8192
MAX_SUBJECT = 256
# Tokens that are remembered, and seconds for which one is.
MAX_REMEMBERED = 10_000
REMEMBERED_FOR = 300.0

_REQUIRED = ["exp", "sub", "iss", "aud"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say, and which claims say what it allows. `leeway` is in seconds."""

    issuer: str
    audience: str
    leeway: float
    organizations_claim: str
    scope_claim: str


class Tokens:
    """Checks tokens, and remembers those that are valid, by their hash.

    A token is remembered until it expires, for up to REMEMBERED_FOR seconds, and until the
    signing keys change. Those that are not valid are not remembered.
    """

    def __init__(self, keys: SigningKeys, token_rules: TokenRules) -> None:
        self._keys = keys
        self._rules = token_rules
        # Until when a token is remembered (seconds since 1970), in the order of the first calls.
        self._remembered: dict[bytes, tuple[Principal, float]] = {}
        self._generation = keys.generation

    @property
    def remembered(self) -> int:
        """The number of tokens that are remembered."""
        return len(self._remembered)

    async def check(self, token: str) -> Principal:
        """Return the caller with a token. Raises Unauthenticated, AccessUnavailable."""
        if self._generation != self._keys.generation:
            self._remembered.clear()
            self._generation = self._keys.generation
        digest = sha256(token.encode()).digest()
        known = self._remembered.get(digest)
        if known is not None:
            principal, until = known
            if time() < until:
                self._keys.check_age()
                return principal
            del self._remembered[digest]
        generation = self._generation
        principal, expires_at = await self._check(token)
        if generation == self._keys.generation:
            if len(self._remembered) >= MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[digest] = principal, min(expires_at, time() + REMEMBERED_FOR)
        return principal

    async def _check(self, token: str) -> tuple[Principal, float]:
        if len(token) > MAX_LENGTH:
            raise Unauthenticated(f"the token has more than {MAX_LENGTH:,} characters")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise Unauthenticated("the credential is neither an API key nor a JWT") from error
        algorithm = header.get("alg")
        key = await self._keys.find(header.get("kid"), str(algorithm))
        if key is None:
            raise Unauthenticated(
                "the token is signed with a key or an algorithm that is not accepted here"
            )
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=self._rules.leeway,
                options={"require": _REQUIRED},
            )
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(_fault(error)) from error
        return self._principal(claims), int(claims["exp"]) + self._rules.leeway

    def _principal(self, claims: dict[str, Any]) -> Principal:
        subject: str = claims["sub"]
        if not 0 < len(subject) <= MAX_SUBJECT or rules.CONTROL.search(subject):
            raise Unauthenticated(
                f"the token's claim sub must have 1 to {MAX_SUBJECT} characters, none of them"
                " control characters"
            )
        return Principal(
            subject=subject,
            credential_id=f"token:{subject}",
            organizations=self._organizations(claims),
            scopes=self._scopes(claims),
        )

    def _organizations(self, claims: dict[str, Any]) -> frozenset[str] | None:
        """Return the organizations of a token: none without the claim, None for all."""
        name = self._rules.organizations_claim
        given = claims.get(name, [])
        if given == "*":
            return None
        if not _is_texts(given):
            raise Unauthenticated(
                f'the token\'s claim {name} must be a list of organizations, or "*" for all'
            )
        return frozenset(given)

    def _scopes(self, claims: dict[str, Any]) -> frozenset[str]:
        """Return the scopes of a token. Those of other services are among them."""
        name = self._rules.scope_claim
        given = claims.get(name, "")
        if isinstance(given, str):
            return frozenset(given.split())
        if not _is_texts(given):
            raise Unauthenticated(
                f"the token's claim {name} must have scopes separated by spaces, or a list of them"
            )
        return frozenset(given)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _fault(error: jwt.InvalidTokenError) -> str:
    """Return what is wrong with a token, without any part of it."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks the claim {error.claim}"
    return _FAULTS.get(type(error), "the token is not a valid JWT, or a claim has the wrong type")


_FAULTS: Mapping[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is from another issuer",
    jwt.InvalidSignatureError: "the token's signature is not valid",
}
