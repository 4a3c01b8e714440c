"""Certificates in files of PEM: read, checked, and followed when they are renewed."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from prometheus_client import Gauge

from runtime.files import FileWatch, SettingFile

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A certificate with its chain, its private key, and its end."""

    chain: bytes
    key: bytes = field(repr=False)
    expiry: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """The content of the files of one end of a connection: who it is, and whom it trusts."""

    pair: KeyPair | None
    authorities: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFiles:
    """The files of a certificate, with the chain up to its authority, and of its private key."""

    certificate: SettingFile
    key: SettingFile

    def read(self) -> KeyPair:
        """Read both, and check that the key is that of the certificate.

        An expired certificate is not refused: the other end decides. Raises FilesUnfit.
        """
        chain, key = self.certificate.read(), self.key.read()
        certificate = _certificates(self.certificate, chain)[0]
        try:
            private = load_pem_private_key(key, password=None)
        except TypeError as error:
            raise self.key.unfit("is encrypted: store the key without a passphrase") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise self.key.unfit("is not a private key in PEM") from error
        if not _is_supported(private):
            raise self.key.unfit(
                "is of a kind that is not supported: use RSA, or ECDSA with P-256 or P-384"
            )
        public = private.public_key()
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if public.public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise self.key.unfit(
                f"is not the key of the certificate in {self.certificate.path}"
                f" ({self.certificate.setting}), which must be the first in its file"
            )
        return KeyPair(chain=chain, key=key, expiry=certificate.not_valid_after_utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """The files of one end of a connection. At least one of the two parts is given."""

    pair: PairFiles | None = None
    authorities: SettingFile | None = None

    def read(self) -> Certificates:
        """Read and check the files. Raises FilesUnfit."""
        authorities = None
        if self.authorities is not None:
            authorities = self.authorities.read()
            _certificates(self.authorities, authorities)
        pair = None if self.pair is None else self.pair.read()
        return Certificates(pair=pair, authorities=authorities)


def _is_supported(key: PrivateKeyTypes) -> bool:
    """Return whether gRPC's clients and browsers accept certificates with such a key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPrivateKey)


def _certificates(file: SettingFile, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise file.unfit("has no certificate in PEM, or a damaged one") from error


class CertificateWatch(FileWatch[Certificates]):
    """The files of one end of a connection.

    `expiry` is set to the end of the certificate (seconds since 1970), by the setting. An expired
    certificate is logged once.
    """

    def __init__(self, files: CertificateFiles, expiry: Gauge) -> None:
        super().__init__("certificates", files.read)
        self._files = files
        self._expiry = expiry
        self._expired: KeyPair | None = None
        self.looked()

    def looked(self) -> None:
        files, pair = self._files.pair, self.current.pair
        if files is None or pair is None:
            return
        self._expiry.labels(files.certificate.setting).set(pair.expiry.timestamp())
        if pair.expiry < datetime.now(UTC) and pair != self._expired:
            self._expired = pair
            log.warning("certificate expired", **self.fields())

    def fields(self) -> dict[str, object]:
        files = (self._files.pair and self._files.pair.certificate, self._files.authorities)
        fields: dict[str, object] = {file.setting: str(file.path) for file in files if file}
        if self.current.pair is not None:
            fields["expiry"] = self.current.pair.expiry.isoformat()
        return fields
