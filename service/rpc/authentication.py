"""Finds the caller of a call by its credential."""

from collections.abc import Callable

from service.access.api_key import PREFIX
from service.access.api_keys import ApiKeys
from service.access.certificates import Callers
from service.access.principal import Principal
from service.access.tokens import Tokens
from service.errors import Unauthenticated
from service.rpc.context import CallContext


class Authenticator:
    """Finds callers by API keys, and by tokens if there is something to check them with.

    `certificates` returns the callers by the identities of their certificates, with which those
    who send no other credential are found.
    """

    def __init__(
        self,
        keys: ApiKeys,
        tokens: Tokens | None,
        certificates: Callable[[], Callers] = dict,
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._certificates = certificates

    async def authenticate(self, context: CallContext) -> Principal:
        """Return the caller of a call.

        Raises Unauthenticated, AccessUnavailable, Overloaded. No message contains the credential.
        """
        if context.authorization is None and context.identity is not None:
            principal = self._certificates().get(context.identity)
            if principal is None:
                raise Unauthenticated(
                    f"the certificate of {context.identity} is not listed, and there is no other"
                    " credential"
                )
            return principal
        if context.authorization is None:
            raise Unauthenticated(
                "a credential is required: Authorization: Bearer, and the credential"
            )
        scheme, _, credential = context.authorization.partition(" ")
        if scheme.lower() != "bearer" or not credential or " " in credential:
            raise Unauthenticated(
                "Authorization must be given once, as Bearer, a space and the credential"
            )
        if credential.startswith(PREFIX):
            return await self._keys.check(credential)
        if self._tokens is None:
            raise Unauthenticated("the credential is not an API key, and tokens are not accepted")
        return await self._tokens.check(credential)
