"""Builds from the settings what finds the callers of the service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from runtime.backoff import run_forever
from runtime.files import FileWatch, SettingFile
from service.access.api_keys import ApiKeys
from service.access.certificates import Callers, read_callers
from service.access.signing_keys import SigningKeys, fetch, read_file
from service.access.tokens import TokenRules, Tokens
from service.metrics import Metrics
from service.postgres.database import Database
from service.postgres.session import CALLER_ROLE
from service.rpc.access import Authenticate
from service.rpc.authentication import Authenticator
from service.rpc.context import read_context
from service.rpc.direct import Identify
from service.rpc.peer import peer_identity
from service.rpc.request_reader import Admit, Context
from service.settings import Settings


@asynccontextmanager
async def authentication(
    settings: Settings, metrics: Metrics
) -> AsyncIterator[Authenticate | None]:
    """Yield what finds the caller of a call; None while access control is off.

    Raises SigningKeysUnavailable if a file has no signing keys, FilesUnfit if one has no callers.
    """
    if settings.access_control == "off":
        yield None
        return
    database = Database(
        settings.database_url,
        name="access",
        # Of its own, so that a revoked key does not have to wait for reads.
        connections=1,
        max_waiting=1,
        timeouts=settings.timeouts,
        role=CALLER_ROLE,
        replica=False,
        metrics=metrics,
    )
    keys = ApiKeys(database, metrics)
    loops = {"read API keys": keys.follow}
    tokens = None
    if settings.jwt_issuer is not None and settings.jwt_audience is not None:
        file, url = settings.jwt_keys_file, settings.jwt_keys_url
        signing_keys = SigningKeys(
            read_file(file) if file is not None else fetch(url or ""),
            metrics,
            algorithms=settings.jwt_algorithms,
            interval=settings.jwt_keys_interval,
            max_age=settings.jwt_keys_max_age,
        )
        await (signing_keys.load() if file is not None else signing_keys.refresh())
        loops["read signing keys"] = signing_keys.follow
        tokens = Tokens(
            signing_keys,
            TokenRules(
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=settings.jwt_leeway,
                organizations_claim=settings.jwt_organizations_claim,
                scope_claim=settings.jwt_scope_claim,
            ),
        )
    certificates = _certificates(settings)
    if certificates is not None:
        loops["watch the callers with certificates"] = certificates.follow
    async with database, AsyncExitStack() as stack:
        await keys.load()
        for name, loop in loops.items():
            task = asyncio.create_task(run_forever(name, loop, metrics.unexpected_errors))
            stack.callback(task.cancel)
        yield Authenticator(
            keys, tokens, dict if certificates is None else lambda: certificates.current
        ).authenticate


def identify(settings: Settings) -> Identify | None:
    """Return what reads the certificates of callers; None if they are no credentials."""
    return None if settings.access_certificates is None else peer_identity


def _certificates(settings: Settings) -> FileWatch[Callers] | None:
    """Return the callers with certificates, which are read again when their file changes."""
    path = settings.access_certificates
    if path is None:
        return None
    file = SettingFile(setting="ACCESS_CERTIFICATES", path=path)
    return FileWatch("callers with certificates", partial(read_callers, file))


def admit_to_reflection(settings: Settings, authenticate: Authenticate | None) -> Admit | None:
    """Return what checks the callers of reflection; None if all may call it."""
    if settings.reflection != "authenticated" or authenticate is None:
        return None

    identity = identify(settings)

    async def admit(context: Context) -> None:
        metadata = context.invocation_metadata() or ()
        shown = None if identity is None else identity(context)
        await authenticate(read_context(metadata, None, shown))

    return admit
