"""The addresses that webhooks may reach: public ones, and the networks that are allowed."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from yarl import URL

from service.webhooks.url import InvalidURL, read_url

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 6052, section 2.1: the last 32 bits are an IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")
# RFC 4291, section 2.4: every globally routed address.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# The forms that inet_aton accepts as an address: 127.1, 0x7f000001, 017700000001.
_LEGACY_IPV4 = re.compile(r"(0[xX])?[0-9a-fA-F]*(\.(0[xX])?[0-9a-fA-F]*){0,3}\.?")


class AddressRules:
    """Checks addresses and URLs. Public addresses need https."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)

    def permits(self, address: Address, *, secure: bool) -> bool:
        """Return whether an address may be reached, by https (`secure`) or by http."""
        effective = _effective(address)
        if any(each in network for network in self._allowed for each in {address, effective}):
            return True
        return secure and _is_public(effective)

    def url_error(self, text: str) -> str | None:
        """Return what is wrong with a URL, or None. Does not resolve its host."""
        try:
            return self._address_error(read_url(text))
        except InvalidURL as error:
            return str(error)

    def _address_error(self, url: URL) -> str | None:
        secure = url.scheme == "https"
        address = literal_address(url)
        if address is None:
            if secure or self._allowed:
                return None
            return "must begin with https://"
        if self.permits(address, secure=secure):
            return None
        if not secure and self.permits(address, secure=True):
            return "must begin with https://"
        return f"must not have the address {address}, which is not a public one"

    def refusal(self, url: URL) -> str | None:
        """Return why a URL whose host is an address may not be reached, or None."""
        address = literal_address(url)
        if address is None or self.permits(address, secure=url.scheme == "https"):
            return None
        return refusal_message(url.raw_host or "", [address], secure=url.scheme == "https")


def literal_address(url: URL) -> Address | None:
    """Return a URL's host if it is an address, in any form that a resolver accepts."""
    host = (url.raw_host or "").partition("%")[0]
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if not _LEGACY_IPV4.fullmatch(host):
        return None
    try:
        return IPv4Address(socket.inet_aton(host))
    except OSError:
        return None


def refusal_message(host: str, addresses: Sequence[Address], *, secure: bool) -> str:
    """Return the error for a host none of whose addresses may be reached."""
    named = ", ".join(map(str, addresses))
    what = "is not a public address" if secure else "may not be reached by http"
    return f"{host} is not reached: {named} {what}, and not allowed by WEBHOOK_ALLOWED_NETWORKS"


def _effective(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address maps or translates to, or the address."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    # `is_global` includes multicast.
    return address.is_global and not address.is_multicast and not address.is_reserved
