"""Who the certificate of a caller names."""

from collections.abc import Iterable, Mapping

from service.rpc.request_reader import Context

SPIFFE = "spiffe://"


def peer_identity(context: Context) -> str | None:
    """Return the identity in the caller's certificate, None without a certificate or a name.

    It is the SPIFFE id (`spiffe://...`), else the first DNS name (`dns:...`), else the common name
    (`cn:...`). The prefixes keep a name of one kind from being taken for another. The certificate
    was verified: gRPC has these properties of no other.

    A certificate with several SPIFFE ids, or with one that is not valid, has no identity
    (X.509-SVID, section 5.2), nor has one with a name that is not UTF-8.
    """
    properties: Mapping[str, Iterable[bytes]] = context.auth_context()
    try:
        # gRPC sets it if there is exactly one that is valid.
        for spiffe_id in _texts(properties, "peer_spiffe_id"):
            return spiffe_id
        if any(uri.lower().startswith(SPIFFE) for uri in _texts(properties, "peer_uri")):
            return None
        for name in _texts(properties, "peer_dns"):
            return f"dns:{name.lower()}"
        for name in _texts(properties, "x509_common_name"):
            return f"cn:{name}"
    except UnicodeDecodeError:
        pass
    return None


def _texts(properties: Mapping[str, Iterable[bytes]], key: str) -> list[str]:
    return [value.decode() for value in properties.get(key, ()) if value]
