"""A webhook's URL is requested exactly as it was registered."""

from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network
from socket import AF_INET, AddressFamily
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.metrics import Metrics
from service.webhooks.addresses import AddressRules, literal_address
from service.webhooks.sender import Sender
from service.webhooks.url import InvalidURL, read_url
from tests.receiver import LOOPBACK
from tests.webhooks.raw_receiver import RawReceiver, raw_receiver

RULES = AddressRules([ip_network(LOOPBACK), ip_network("::1/128")])

TARGETS = [
    "/invoke?sp=%2Ftriggers%2Fmanual%2Frun&sig=a%2Bb%2Fc%3D",
    "/c%41%7E/%2E%2E/d%2Fe",
    "/d/../e/./f",
    "/d/..",
    "//a//b/",
    "/?x=a%20b&y=a+b",
    "/?a?&=&&b=?",
    "/%c3%A9%",
    "/%zz?%",
    "/a;b=1,c:2@d!$'()*",
    '/{a}|^`<b>"c"',
    "/~%7e-%2d_%5f.%2e",
    "/%00%0d%0a",
    "/" + "x" * 2000,
]


@pytest.fixture
async def receiver() -> AsyncIterator[RawReceiver]:
    async with raw_receiver() as receiver:
        yield receiver


async def look_up(host: str, port: int, family: AddressFamily) -> list[tuple[Any, ...]]:
    assert host.isascii()
    return [(AF_INET, 0, 0, "", ("127.0.0.1", port))]


async def lines_of(receiver: RawReceiver, urls: Sequence[str]) -> list[tuple[str, str]]:
    """The target and the Host of each request, as received."""
    sender = Sender(RULES, Metrics(), timeout=5.0, connections=8, look_up=look_up)
    async with sender:
        for url in urls:
            assert RULES.url_error(url) is None, url
            attempt = await sender.send(url, "{}", {})
            assert attempt.delivered, (url, attempt)
    assert [each.line.split(b" ")[::2] for each in receiver.requests] == [
        [b"POST", b"HTTP/1.1"] for _ in urls
    ]
    return [(each.target, dict(each.headers)["Host"]) for each in receiver.requests]


async def test_a_path_and_a_query_are_requested_as_registered(receiver: RawReceiver) -> None:
    host = f"127.0.0.1:{receiver.port}"
    found = await lines_of(receiver, [f"http://{host}{target}" for target in TARGETS])
    assert found == [(target, host) for target in TARGETS]


async def test_without_a_path_it_is_the_root(receiver: RawReceiver) -> None:
    """RFC 9112, section 3.2.1: the target of a request has a path."""
    host = f"127.0.0.1:{receiver.port}"
    found = await lines_of(receiver, [f"http://{host}", f"http://{host}?x=a%20b&y=a+b"])
    assert found == [("/", host), ("/?x=a%20b&y=a+b", host)]


async def test_a_host_is_written_as_it_is_looked_up(receiver: RawReceiver) -> None:
    hosts = {
        "HOOKS.Example.com": "hooks.example.com",
        "b\u00fccher.example": "xn--bcher-kva.example",
        "B\u00dcCHER.example": "xn--bcher-kva.example",
        "xn--bcher-kva.example": "xn--bcher-kva.example",
        "\uff11\uff12\uff17.0.0.1": "127.0.0.1",
    }
    port = receiver.port
    found = await lines_of(receiver, [f"HTTP://{host}:{port}/%2F?%2f" for host in hosts])
    assert found == [("/%2F?%2f", f"{host}:{port}") for host in hosts.values()]


async def test_an_ipv6_literal_is_a_host() -> None:
    async with raw_receiver(host="::1") as receiver:
        host = f"[::1]:{receiver.port}"
        long = f"[0:0:0:0:0:0:0:1]:{receiver.port}"
        found = await lines_of(receiver, [f"http://{host}/%2F", f"http://{long}/%2F"])
        assert [target for target, _ in found] == ["/%2F", "/%2F"]
        assert found[0][1] == host


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://h.example/\u00e9", "visible ASCII characters; percent-encode others"),
        ("https://h.example/?\u00e9", "visible ASCII characters; percent-encode others"),
        ("https://h.example/\x7f", "visible ASCII characters; percent-encode others"),
        ("https://h.example/a b", "spaces or backslashes; percent-encode them"),
        ("https://h.example/a\\b", "spaces or backslashes; percent-encode them"),
        ("https://h.example?", "must not end with a ?"),
        ("https://h.example/a?", "must not end with a ?"),
        ("https://h.example/#", "fragment"),
        ("https://h%41.example/", "host of letters, digits"),
        ("https://h<.example/", "host of letters, digits"),
        ("https://@h.example/", "user or a password"),
        ("https://a:b@h.example/", "user or a password"),
        ("https:/h.example/", "begins with https:// and a host"),
        ("https:///a", "begins with https:// and a host"),
        ("https://?a", "begins with https:// and a host"),
        ("https://:80/", "host and a port"),
        ("https://h.example:65536/", "host and a port"),
        ("https://h.example:0/", "port from 1 to 65535"),
        ("https://[::1/", "host and a port"),
        ("https://[:\u00baffff:127.0.0.1]/", "host and a port"),
        ("https://[:2ffff:35.20.0.1]/", "host and a port"),
        ("https://[::ffff:35.\N{MATHEMATICAL BOLD DIGIT TWO}0.0.1]/", "host and a port"),
    ],
)
async def test_what_cannot_be_requested_as_it_is_is_refused(url: str, fault: str) -> None:
    """When it is registered, and for URLs that were registered before the rule existed."""
    with pytest.raises(InvalidURL, match=fault.replace("?", r"\?")):
        read_url(url)
    assert fault in (RULES.url_error(url) or "")
    async with Sender(RULES, Metrics(), timeout=5.0, connections=8, look_up=look_up) as sender:
        attempt = await sender.send(url, "{}", {})
    assert (attempt.result, attempt.http_status) == ("refused", None)
    assert attempt.error.startswith("the URL must ")
    assert fault in attempt.error


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40))
def test_no_character_of_a_target_is_changed(text: str) -> None:
    try:
        url = read_url(f"https://h.example/{text}")
    except InvalidURL:
        assert "#" in text or "\\" in text or (text.endswith("?") and text.count("?") == 1)
    else:
        assert url.raw_path_qs == f"/{text}"
        assert str(url) == f"https://h.example/{text}"


@given(st.text(max_size=30))
def test_what_is_judged_is_what_is_requested(text: str) -> None:
    """Parsing a normalized host again does not change it."""
    try:
        url = read_url(f"https://{text}")
    except InvalidURL:
        return
    assert url.raw_host is not None
    assert url.raw_host.isascii()
    again = read_url(str(url))
    assert (again, literal_address(again)) == (url, literal_address(url))
