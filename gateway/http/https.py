"""TLS of the HTTP server."""

import ssl

from runtime.files import FilesUnfit
from runtime.tls import Certificates, PairFiles


class Https:
    """The context for a listening socket, whose certificate can be renewed.

    A handshake begins with `context`, which hands it to the context that was made last. Loading
    another certificate into a context in use would break it if the files do not match.
    """

    def __init__(self, pair: PairFiles) -> None:
        self._pair = pair
        self._latest = self.context = self._load()
        # Called for each handshake, also without a server name.
        self.context.sni_callback = self._choose

    async def renew(self, _: Certificates) -> None:
        """Use the files as they are now for new connections. Raises FilesUnfit."""
        self._latest = self._load()

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._latest

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without a password OpenSSL would ask for one at the terminal.
            context.load_cert_chain(self._pair.certificate.path, self._pair.key.path, password="")
        except OSError as error:  # ssl.SSLError is one too
            raise FilesUnfit(
                f"{self._pair.certificate.setting}: {self._pair.certificate.path} and"
                f" {self._pair.key.path} cannot be used: {error.strerror or error}"
            ) from error
        return context
