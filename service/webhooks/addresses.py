"""Which addresses a webhook may reach: none inside the operator's network unless allowed."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from yarl import URL

from service.webhooks.url import InvalidURL, read_url

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 6052, section 2.1: the rest is an IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")
# RFC 4291, section 2.4: all that is routed globally.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# What inet_aton takes for an address: 127.1, 0x7f000001, 017700000001.
_LEGACY_IPV4 = re.compile(r"(0[xX])?[0-9a-fA-F]*(\.(0[xX])?[0-9a-fA-F]*){0,3}\.?")


class AddressRules:
    """Judges addresses and URLs. Public addresses are reached by https only."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)

    def permits(self, address: Address, *, secure: bool) -> bool:
        """Tell whether an address may be reached, by https (`secure`) or by http."""
        meant = _meant(address)
        if any(each in network for network in self._allowed for each in {address, meant}):
            return True
        return secure and _is_public(meant)

    def fault_of(self, text: str) -> str | None:
        """Say what is wrong with a URL, as far as that is evident without resolving it."""
        try:
            return self._address_fault(read_url(text))
        except InvalidURL as error:
            return str(error)

    def _address_fault(self, url: URL) -> str | None:
        secure = url.scheme == "https"
        address = literal_of(url)
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
        """Say why nothing is sent to a URL whose host is an address; None for others."""
        address = literal_of(url)
        if address is None or self.permits(address, secure=url.scheme == "https"):
            return None
        return refused(url.raw_host or "", [address], secure=url.scheme == "https")


def literal_of(url: URL) -> Address | None:
    """Return the address that a URL's host is, in any form that a resolver takes."""
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


def refused(host: str, addresses: Sequence[Address], *, secure: bool) -> str:
    """Say that a host was not reached because of its addresses."""
    named = ", ".join(map(str, addresses))
    what = "is not a public address" if secure else "may not be reached by http"
    return f"{host} is not reached: {named} {what}, and not allowed by WEBHOOK_ALLOWED_NETWORKS"


def _meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, or the address itself."""
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
    # Python counts multicast among what is global.
    return address.is_global and not address.is_multicast and not address.is_reserved
