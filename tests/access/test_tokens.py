"""Tokens that a running service accepts and refuses."""

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.access import tokens
from service.access.signing_keys import SigningKeys, read_file
from service.access.tokens import TokenRules, Tokens
from service.errors import Unauthenticated
from service.metrics import Metrics
from tests.access.caller import Caller, bearer, calling
from tests.access.conftest import Guarded
from tests.access.issuer import (
    AUDIENCE,
    ISSUER,
    SigningKey,
    new_private_key,
    settings,
    write_keys,
)
from tests.conftest import StartProgram
from tests.observing import until

NOT_ACCEPTED = "the token is signed with a key or an algorithm that is not accepted here"


@pytest.fixture
def sign(guarded: Guarded, organization: str) -> Callable[..., str]:
    """Return a token for the test's organization."""
    return lambda **claims: guarded.signer.token(organization, **claims)


def message(caller: Caller, token: str) -> str:
    """Return why a token is refused as UNAUTHENTICATED."""
    refused = caller.get(bearer(token))
    assert refused is not None
    assert refused.reason == "UNAUTHENTICATED", refused
    return refused.message


def test_a_token_allows_what_it_says(caller: Caller, sign: Callable[..., str]) -> None:
    assert caller.write(bearer(sign())) == ""
    assert caller.reason(bearer(sign(scopes="appointments.read openid"))) == ""
    assert caller.reason(bearer(sign(scope=["openid", "appointments.read"]))) == ""
    assert caller.reason(bearer(sign(organizations="*"))) == ""
    assert caller.actors(bearer(sign())) == ["alice"]
    for less in (
        sign(scopes="appointments.write"),
        sign(scope=None),
        sign(scopes=""),
        sign(organizations=None),
        sign(organizations=[]),
        # In a list it is the organization of this name.
        sign(organizations=["*"]),
        sign(organizations=["other"]),
    ):
        assert caller.reason(bearer(less)) == "PERMISSION_DENIED"
        assert caller.reason(bearer(less), "no-such") == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"lifetime": -1}, "the token has expired"),
        ({"nbf": 4_000_000_000}, "the token is not valid yet"),
        ({"iat": 4_000_000_000}, "the token is not valid yet"),
        ({"aud": "other"}, "the token is for another audience"),
        ({"aud": ["other", "more"]}, "the token is for another audience"),
        ({"iss": "https://other.example"}, "the token is from another issuer"),
        ({"sub": None}, "the token lacks the claim sub"),
        ({"exp": None}, "the token lacks the claim exp"),
        ({"aud": None}, "the token lacks the claim aud"),
        ({"iss": None}, "the token lacks the claim iss"),
        ({"exp": "soon"}, "the token is not a valid JWT, or a claim has the wrong type"),
        ({"sub": 7}, "the token is not a valid JWT, or a claim has the wrong type"),
        ({"sub": ""}, "the token's claim sub must have 1 to 256 characters"),
        ({"sub": "a" * 257}, "the token's claim sub must have 1 to 256 characters"),
        ({"sub": "a\n"}, "the token's claim sub must have 1 to 256 characters"),
        ({"organizations": "one"}, "the token's claim organizations must be a list"),
        ({"organizations": [1]}, "the token's claim organizations must be a list"),
        ({"scope": 1}, "the token's claim scope must have scopes separated by spaces"),
        ({"scope": [{}]}, "the token's claim scope must have scopes separated by spaces"),
    ],
    ids=str,
)
def test_a_token_that_is_not_valid_is_refused_with_what_is_wrong(
    caller: Caller, sign: Callable[..., str], claims: dict[str, Any], why: str
) -> None:
    assert message(caller, sign(**claims)).startswith(why)


def test_a_token_of_several_audiences_is_accepted(caller: Caller, sign: Callable[..., str]) -> None:
    assert caller.write(bearer(sign(aud=["other", AUDIENCE]))) == ""


def encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def test_forged_tokens_are_refused(
    caller: Caller, guarded: Guarded, sign: Callable[..., str]
) -> None:
    valid = sign()
    header, payload, signature = valid.split(".")
    claims = json.loads(jwt.utils.base64url_decode(payload))
    public = guarded.signer.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    more = encoded(json.dumps({**claims, "organizations": "*"}).encode())

    def headed(**members: str) -> str:
        return encoded(json.dumps({"typ": "JWT", "kid": "first", **members}).encode())

    # Without a signature.
    for name in ("none", "None", "NONE"):
        assert message(caller, f"{headed(alg=name)}.{payload}.") == NOT_ACCEPTED
    # Signed with the public key as the secret of an HMAC.
    for secret in (pem, pem.strip(), json.dumps(guarded.signer.jwk()).encode()):
        forged = jwt.api_jws.get_algorithm_by_name("HS256")
        head = f"{headed(alg='HS256')}.{payload}"
        mac = encoded(forged.sign(head.encode(), secret))
        assert message(caller, f"{head}.{mac}") == NOT_ACCEPTED
    # Another key under the same id, other content, another signature, another algorithm.
    other = SigningKey("first").token(caller.organization)
    broken = "the token's signature is not valid"
    assert message(caller, other) == broken
    assert message(caller, f"{header}.{more}.{signature}") == broken
    assert message(caller, f"{header}.{payload}.{encoded(bytes(64))}") == broken
    assert message(caller, f"{header}.{payload}.") == broken
    assert message(caller, SigningKey("first", "RS256").token(caller.organization)) == NOT_ACCEPTED
    # Keys that the token brings with it.
    own = SigningKey("mine")
    for headers in ({"jwk": own.jwk()}, {"jku": "https://mine.example/keys"}, {"kid": "../mine"}):
        assert message(caller, own.token(caller.organization, headers=headers)) == NOT_ACCEPTED
    # Extensions that are not known (RFC 7515, 4.1.11).
    assert "neither" in message(caller, sign(headers={"crit": ["exp"], "exp": 1}))
    for text in ("a.b.c", "a.b", "...", f"{valid}.", f"{valid}=", "e30.e30.e30"):
        assert message(caller, text)
    assert caller.write(bearer(valid)) == ""


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_each_key_is_used_with_its_own_algorithms_only(
    guarded: Guarded, start_service: StartProgram, tmp_path: Path, organization: str, algorithm: str
) -> None:
    path = tmp_path / "keys.json"
    key, bound = SigningKey("key", algorithm), SigningKey("bound", algorithm)
    small = SigningKey("small", "RS256")
    write_keys(
        path,
        key,
        bound.jwk(alg=algorithm),
        SigningKey("encrypting", algorithm).jwk(use="enc"),
        {"kty": "oct", "kid": "secret", "k": encoded(bytes(32))},
        {"kty": "EC", "crv": "P-256", "kid": "broken", "x": "?", "y": "?"},
        {**small.jwk(), "n": encoded((2**1023 + 1).to_bytes(128, "big"))},
        {"kid": "nothing"},
    )
    service = start_service(
        DATABASE_URL=guarded.database_url, **settings(path, JWT_ALGORITHMS=algorithm)
    )
    with calling(service, organization) as caller:
        for each in (key, bound):
            assert caller.write(bearer(each.token(organization))) == ""
        others = {"RS256", "RS384", "PS256", "ES256", "ES384", "EdDSA", "HS256"} - {algorithm}
        for other in sorted(others):
            private = b"s" * 32 if other == "HS256" else new_private_key(other)
            claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "a", "exp": time.time() + 60}
            token = jwt.encode(claims, private, algorithm=other, headers={"kid": "key"})
            assert message(caller, token) == NOT_ACCEPTED
        secret = jwt.encode({}, bytes(32), algorithm="HS256", headers={"kid": "secret"})
        for refused in (secret, small.token(organization)):
            assert message(caller, refused) == NOT_ACCEPTED
    logged = service.wait_for_event(lambda event: event["event"] == "signing keys")
    assert logged["ids"] == ["bound", "key"]


def test_a_private_key_in_the_set_is_used_as_public_key(
    guarded: Guarded, start_service: StartProgram, tmp_path: Path, organization: str
) -> None:
    path = tmp_path / "keys.json"
    private = ed25519.Ed25519PrivateKey.generate()
    key = SigningKey("key", "EdDSA", private)
    write_keys(path, key.jwk(d=encoded(private.private_bytes_raw())))
    service = start_service(DATABASE_URL=guarded.database_url, **settings(path))
    with calling(service, organization) as caller:
        assert caller.write(bearer(key.token(organization))) == ""


def test_the_names_of_claims_and_the_leeway_are_settings(
    guarded: Guarded, start_service: StartProgram, organization: str
) -> None:
    names = {
        "JWT_ORGANIZATIONS_CLAIM": "https://ours.example/tenants",
        "JWT_SCOPE_CLAIM": "permissions",
        "JWT_LEEWAY": "60",
    }
    service = start_service(
        DATABASE_URL=guarded.database_url, **settings(guarded.keys_file, **names)
    )
    claims: dict[str, Any] = {
        "https://ours.example/tenants": [organization],
        "permissions": ["appointments.write"],
    }
    with calling(service, organization) as caller:
        token = guarded.signer.token("nobody", lifetime=-30, scopes="", **claims)
        assert caller.write(bearer(token)) == ""
        late = guarded.signer.token("nobody", lifetime=-61, scopes="", **claims)
        assert message(caller, late) == "the token has expired"


def test_a_token_expires_though_it_is_remembered(caller: Caller, sign: Callable[..., str]) -> None:
    token = sign(lifetime=2)
    assert caller.write(bearer(token)) == ""
    until(lambda: caller.reason(bearer(token)) == "UNAUTHENTICATED", within=4)
    assert message(caller, token) == "the token has expired"


def test_rotated_keys_of_a_file(
    guarded: Guarded, start_service: StartProgram, tmp_path: Path, organization: str
) -> None:
    """A new key works at once, and one that is gone after the interval."""
    path = tmp_path / "keys.json"
    old, new = SigningKey("old"), SigningKey("new")
    write_keys(path, old)
    service = start_service(
        DATABASE_URL=guarded.database_url, **settings(path, JWT_KEYS_INTERVAL="6")
    )
    with calling(service, organization) as caller:
        assert caller.write(bearer(old.token(organization))) == ""
        write_keys(path, old, new)
        # The set is read for an unknown key, unless it was read in the last five seconds.
        until(lambda: caller.reason(bearer(new.token(organization))) == "", within=7)
        remembered = old.token(organization)
        assert caller.reason(bearer(remembered)) == ""
        write_keys(path, new)
        until(lambda: caller.reason(bearer(remembered)) == "UNAUTHENTICATED", within=9)
        assert caller.reason(bearer(new.token(organization))) == ""
        # What cannot be read leaves the keys as they were.
        path.write_text("{")
        service.wait_for_event(lambda event: event["event"] == "the signing keys cannot be read")
        assert caller.reason(bearer(new.token(organization))) == ""


def test_no_token_is_logged(caller: Caller, guarded: Guarded, sign: Callable[..., str]) -> None:
    given = [sign(), sign(lifetime=-1), sign(scopes=""), sign()[:-2], "not.a.token"]
    for token in given:
        caller.reason(bearer(token))
    guarded.program.wait_for_event(lambda event: event.get("credential") == "token:alice")
    logs = "\n".join(guarded.program.log_lines())
    for token in given:
        assert token.split(".")[1][:30] not in logs or token == "not.a.token"
        assert token.rpartition(".")[2] not in logs or token == "not.a.token"


@pytest.fixture
async def checking(tmp_path: Path) -> tuple[SigningKey, Tokens, SigningKeys, Path]:
    path = tmp_path / "keys.json"
    key = SigningKey("key")
    write_keys(path, key)
    keys = SigningKeys(
        read_file(path), Metrics(), algorithms=["ES256"], interval=60, max_age=60, min_interval=0
    )
    await keys.load()
    token_rules = TokenRules(
        issuer=ISSUER,
        audience=AUDIENCE,
        leeway=0,
        organizations_claim="organizations",
        scope_claim="scope",
    )
    return key, Tokens(keys, token_rules), keys, path


async def test_a_bounded_number_of_valid_tokens_is_remembered(
    checking: tuple[SigningKey, Tokens, SigningKeys, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, checked, keys, path = checking
    monkeypatch.setattr(tokens, "MAX_REMEMBERED", 3)
    for number in range(10):
        token = key.token("o", jti=str(number))
        assert await checked.check(token) is await checked.check(token)
        with pytest.raises(Unauthenticated):
            await checked.check(key.token("o", lifetime=-number - 1))
        assert checked.remembered <= 3
    last = await checked.check(token)
    write_keys(path, SigningKey("other"))
    await keys.load()
    with pytest.raises(Unauthenticated, match="not accepted"):
        await checked.check(token)
    assert (last.subject, checked.remembered) == ("alice", 0)
