"""The addresses of webhooks are checked in the resolver of the request itself."""

import socket
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from service.metrics import Metrics
from service.webhooks.addresses import AddressRules
from service.webhooks.resolver import LookUp
from service.webhooks.sender import Sender
from service.webhooks.webhook import Attempt
from tests.receiver import LOOPBACK, Receiver, status

PUBLIC = "93.184.215.14"
# A port without a listener, at addresses that no test may reach.
CLOSED = 9


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def answering(*answers: Sequence[str]) -> tuple[LookUp, list[str]]:
    """A name server that returns a different result each time, and records its queries."""
    asked: list[str] = []

    async def look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[Any, ...]]:
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port),
            )
            for address in addresses
        ]

    return look_up, asked


async def send(url: str, look_up: LookUp, *allowed: str) -> Attempt:
    rules = AddressRules([ip_network(each) for each in allowed])
    sender = Sender(rules, Metrics(), timeout=2.0, connections=2, look_up=look_up)
    async with sender:
        return await sender.send(url, "{}", {"content-type": "application/json"})


async def test_a_name_that_is_private_when_it_is_used_is_refused(receiver: Receiver) -> None:
    """A name that is public in a check and loopback in the request (DNS rebinding)."""
    look_up, asked = answering([PUBLIC], ["127.0.0.1"])
    rules = AddressRules([])
    url = f"https://rebound.example.com:{receiver.port}/"
    assert rules.url_error(url) is None
    await look_up("rebound.example.com", receiver.port, socket.AF_INET)
    attempt = await send(url, look_up)
    assert (attempt.result, attempt.http_status) == ("refused", None)
    assert attempt.error == (
        "rebound.example.com is not reached: 127.0.0.1 is not a public address,"
        " and not allowed by WEBHOOK_ALLOWED_NETWORKS"
    )
    assert len(asked) == 2
    assert receiver.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.1", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1",
        "192.0.0.1", "192.168.0.1", "198.18.0.1", "224.0.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2001:db8::1", "2001::1", "2002:0a00:0001::1", "fc00::1", "fe80::1", "fec0::1",
        "ff02::1", "100::1",
    ],
)  # fmt: skip
async def test_no_name_leads_to_what_is_not_public(address: str) -> None:
    look_up, asked = answering([address])
    attempt = await send(f"https://inside.example.com:{CLOSED}/", look_up)
    assert attempt.result == "refused"
    assert "WEBHOOK_ALLOWED_NETWORKS" in attempt.error
    assert asked == ["inside.example.com"]
    literal = f"[{address}]" if ":" in address else address
    attempt = await send(f"https://{literal}:{CLOSED}/", look_up)
    assert attempt.result == "refused"
    assert len(asked) == 1


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "017700000001", "[::1%lo]"])
async def test_no_form_of_an_address_slips_through(receiver: Receiver, host: str) -> None:
    look_up, _ = answering([PUBLIC])
    attempt = await send(f"https://{host}:{receiver.port}/", look_up)
    assert attempt.result == "refused"
    assert receiver.requests == []


async def test_of_mixed_addresses_only_the_permitted_are_tried(receiver: Receiver) -> None:
    look_up, _ = answering(["10.0.0.1", "127.0.0.1"])
    attempt = await send(f"http://mixed.example.com:{receiver.port}/", look_up, LOOPBACK)
    assert (attempt.result, attempt.http_status) == ("taken", 200)


async def test_http_reaches_allowed_networks_only() -> None:
    look_up, _ = answering([PUBLIC])
    attempt = await send(f"http://public.example.com:{CLOSED}/", look_up, LOOPBACK)
    assert attempt.result == "refused"
    assert "may not be reached by http" in attempt.error
    attempt = await send(f"http://{PUBLIC}:{CLOSED}/", look_up, LOOPBACK)
    assert attempt.result == "refused"


async def test_neither_redirects_nor_proxies_nor_cookies_lead_elsewhere(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, receiver.url("/proxy"))
    receiver.answers["/a"] = status(307, Location=receiver.url("/b"), Set_Cookie="a=b")
    rules = AddressRules([ip_network(LOOPBACK)])
    look_up, _ = answering(["127.0.0.1"])
    sender = Sender(rules, Metrics(), timeout=2, connections=2, look_up=look_up)
    async with sender:
        for _ in range(2):
            attempt = await sender.send(f"http://x.example.com:{receiver.port}/a", "{}", {})
            assert attempt.error == (
                "the answer was 307 Temporary Redirect; redirects are not followed"
            )
    assert [each.path for each in receiver.requests] == ["/a", "/a"]
    assert not any("Cookie" in each.headers for each in receiver.requests)


async def test_a_name_that_is_not_known_is_a_failure() -> None:
    async def look_up(*_: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    attempt = await send("https://nowhere.example.com/", look_up)
    assert attempt.result == "connection"
    assert "Name or service not known" in attempt.error


def test_allowed_networks_hold_every_form_of_their_addresses() -> None:
    rules = AddressRules([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"):
        assert rules.permits(ip_address(text), secure=False), text
    for text in ("11.1.2.3", "::ffff:11.1.2.3", "fc00::1"):
        assert not rules.permits(ip_address(text), secure=False), text
