"""Authorities and certificates for tests of TLS, made anew and written to files."""

import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

LOOPBACK: Sequence[x509.GeneralName] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
)
DAY = timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes
    serial: int


class Authority:
    """A certificate authority. `certificate` is its own, in PEM."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._signed = _sign(self._name, self._name, self._key, self._key, is_authority=True)
        self.certificate = self._signed.public_bytes(Encoding.PEM)

    def issue(
        self,
        common_name: str = "test",
        names: Sequence[x509.GeneralName] = LOOPBACK,
        *,
        ends: timedelta = DAY,
        passphrase: str = "",
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> Issued:
        key = key or ec.generate_private_key(ec.SECP256R1())
        signed = _sign(_name(common_name), self._name, key, self._key, names=names, ends=ends)
        return Issued(
            signed.public_bytes(Encoding.PEM),
            key.private_bytes(
                Encoding.PEM,
                PrivateFormat.PKCS8,
                BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption(),
            ),
            signed.serial_number,
        )


@dataclass(frozen=True, slots=True)
class Files:
    """A directory with `tls.crt`, `tls.key` and `ca.crt`."""

    directory: Path

    def write(self, issued: Issued | None = None, authority: Authority | None = None) -> "Files":
        if issued is not None:
            self.certificate.write_bytes(issued.certificate)
            self.key.write_bytes(issued.key)
        if authority is not None:
            self.ca.write_bytes(authority.certificate)
        return self

    @property
    def certificate(self) -> Path:
        return self.directory / "tls.crt"

    @property
    def key(self) -> Path:
        return self.directory / "tls.key"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"


class Volume:
    """A directory that is updated as Kubernetes does: its files are symbolic links to `..data`,
    which is one to a directory of each version, and is replaced by renaming."""

    def __init__(self, directory: Path) -> None:
        self.files = Files(directory)
        self._version = 0

    def publish(self, issued: Issued, authority: Authority) -> None:
        directory = self.files.directory
        self._version += 1
        version = directory / f"..version-{self._version}"
        version.mkdir(parents=True)
        Files(version).write(issued, authority)
        link = directory / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(directory / "..data")
        for file in (self.files.certificate, self.files.key, self.files.ca):
            if not os.path.lexists(file):
                file.symlink_to(Path("..data") / file.name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificateIssuerPrivateKeyTypes,
    signing_key: ec.EllipticCurvePrivateKey,
    *,
    names: Sequence[x509.GeneralName] = (),
    ends: timedelta = DAY,
    is_authority: bool = False,
) -> x509.Certificate:
    """Return a certificate as RFC 5280 has it: Python 3.13 and later accept no other."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
    )
    if is_authority:
        builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
    if names:
        without_subject = not list(subject)
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=without_subject
        )
    return builder.sign(signing_key, hashes.SHA256())


def client_tls(authority: Authority) -> ssl.SSLContext:
    """Return the TLS of an HTTP client that trusts an authority."""
    return ssl.create_default_context(cadata=authority.certificate.decode())


def begin_handshake(port: int, sent: bytes) -> socket.socket:
    """Connect, send some bytes, and no more. Closing the connection is left to the server."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(sent)
    return connection


def client_hello() -> bytes:
    """Return the first message of a TLS handshake."""
    sent = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def channel_to(address: str, authority: Authority, client: Issued | None = None) -> grpc.Channel:
    """Return a channel with a connection of its own, and a client's certificate if given."""
    key, chain = (client.key, client.certificate) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.certificate, key, chain)
    return grpc.secure_channel(
        address, credentials, options=[("grpc.use_local_subchannel_pool", 1)]
    )


def served_serial(port: int) -> int:
    """Return the serial number of the certificate that a server shows to a new connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number
