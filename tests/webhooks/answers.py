"""Responses of receivers: known odd ones, and variations by hypothesis."""

from typing import Any

from hypothesis import strategies as st

from tests.webhooks.raw_receiver import Answer, End


def answer(head: str, body: bytes = b"", **other: Any) -> Answer:
    return Answer(written=head.encode("latin-1") + b"\r\n" + body, **other)


def status(code: int | str, *headers: str, **other: Any) -> Answer:
    return answer("\r\n".join([f"HTTP/1.1 {code} Whatever", *headers, ""]), **other)


DATES = [
    "Mon, 01 Jan 99999999999 00:00:00 GMT",
    "Mon, 01 Jan 2031 99999999999999999999:00:00 GMT",
    "Mon, 01 Jan 2031 00:00:00 +99999999999999999999",
    "Mon, 01 Jan 2031 00:00:00 -9999",
    "Mon, 01 Jan 2031 00:00:00 -0000",
    "Fri, 31 Dec 9999 23:59:59 -2359",
    "Mon, 01 Jan 0001 00:00:00 +2359",
    "Mon, 32 Jan 2031 25:61:61 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "9" * 5000,
    "-1",
    "\u00b2",
    "1e400",
    "NaN",
    ",",
    "",
    "Mon, 1 2 3 4",
    "\xff\xfe",
]
CLOSED = "Connection: close"
NAMED = {
    **{f"/503-{n}": status(503, f"Retry-After: {date}", CLOSED) for n, date in enumerate(DATES)},
    **{f"/410-{n}": status(410, f"Retry-After: {date}", CLOSED) for n, date in enumerate(DATES)},
    "/two-dates": status(503, "Retry-After: x", f"Retry-After: {DATES[0]}", CLOSED),
    "/nothing": Answer(),
    "/reset": Answer(end=End.RESET),
    "/hangs": Answer(end=End.HANG),
    "/cut-in-the-status": Answer(written=b"HTTP/1.1 2"),
    "/cut-in-a-header": Answer(written=b"HTTP/1.1 200 OK\r\nContent-Le"),
    "/cut-in-the-body": status(500, "Content-Length: 100"),
    "/drips-a-header": Answer(written=b"HTTP/1.1 503 X\r\nA: ", end=End.DRIP),
    "/drips-a-body": status(503, "Content-Length: 100", end=End.DRIP),
    "/endless-header": Answer(written=b"HTTP/1.1 503 X\r\nA: ", end=End.FLOOD, more=b"x" * 999),
    "/endless-headers": Answer(written=b"HTTP/1.1 503 X\r\n", end=End.FLOOD, more=b"A: b\r\n" * 99),
    "/endless-body": status(503, end=End.FLOOD, more=b"x" * 9999),
    "/endless-interim": Answer(end=End.FLOOD, more=b"HTTP/1.1 100 Continue\r\n\r\n" * 9),
    "/interim": answer(f"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 503 X\r\n{CLOSED}\r\n"),
    "/switching": status(101, "Upgrade: x", "Connection: upgrade"),
    "/http-0.9": Answer(written=b"<html>moved</html>"),
    "/http-2": Answer(written=b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0d"),
    "/tls": Answer(written=b"\x15\x03\x01\0\x02\x02\x0a"),
    "/two-lengths": status(503, "Content-Length: 1", "Content-Length: 2"),
    "/length-and-chunks": status(503, "Content-Length: 1", "Transfer-Encoding: chunked"),
    "/bad-length": status(503, "Content-Length: -1"),
    "/huge-length": status(503, "Content-Length: " + "9" * 30),
    "/bad-chunks": status(503, "Transfer-Encoding: chunked", body=b"zz\r\nx\r\n"),
    "/late-bad-chunks": status(503, "Transfer-Encoding: chunked", end=End.DRIP, more=b"zz\r\n"),
    "/huge-chunk": status(503, "Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\nx"),
    "/bad-encoding": status(503, "Content-Encoding: gzip", CLOSED, body=b"no gzip"),
    "/latin-1": answer("HTTP/1.1 503 Zu fr\xfch\r\nX: \xe9\r\n" + CLOSED + "\r\n"),
    "/nul": Answer(written=b"HTTP/1.1 503 \0\0\r\nX: \0\r\n\r\n"),
    "/many-headers": status(503, *(f"X-{n}: y" for n in range(5000))),
    "/long-header": status(503, "X: " + "y" * 100_000),
    "/status-0": status("000"),
    "/status-99": status("99"),
    "/status-999": status("999", CLOSED),
    "/status-huge": status("9" * 30),
    "/status-words": status("no"),
    "/bare-newlines": Answer(written=b"HTTP/1.1 503 X\nA: b\n\n"),
    "/pipelined": status(503, "Content-Length: 0", body=b"HTTP/1.1 200 OK\r\n\r\n" * 3),
    "/kept": status(503, "Content-Length: 0", end=End.KEEP),
    "/cookie": status(503, "Set-Cookie: " + "\xff" * 50, CLOSED),
}  # fmt: skip

NAMES = st.sampled_from(["Retry-After", "Content-Length", "Transfer-Encoding", "Connection",
                         "Content-Encoding", "Set-Cookie", "Location", "Upgrade", "X"])  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([*DATES, "chunked", "gzip", "close", "keep-alive", "0", "1", "10", "upgrade"]),
    st.integers(min_value=-(10**30), max_value=10**30).map(str),
    st.datetimes().map(lambda time: time.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.text(st.characters(max_codepoint=255), max_size=60),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(
    lambda pairs: "".join(f"{name}: {value}\r\n" for name, value in pairs).encode("latin-1")
)
CODES = st.one_of(st.sampled_from([200, 204, 410, 429, 503]), st.integers(0, 1200))
HEADS = st.builds(
    lambda version, code, words: f"{version} {code} {words}\r\n".encode("latin-1"),
    st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2", "http/1.1", "HTTP/9.9", ""]),
    CODES,
    st.text(st.characters(max_codepoint=255), max_size=10),
)
PROPER = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from(
        [b""] * 4 + [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 X\r\nA: b\r\n\r\n"]
    ),
    HEADS,
    HEADERS,
    st.just(b"\r\n"),
    st.one_of(st.binary(max_size=50), st.just(b"5\r\nhello\r\n0\r\n\r\n")),
)
ANSWERS = st.builds(
    lambda written, cut, end, more: Answer(written=written, cut=cut, end=end, more=more),
    st.one_of(PROPER, PROPER, PROPER, st.binary(max_size=100)),
    st.sampled_from([0, 0, 5, 20, 40]),
    st.sampled_from([End.CLOSE] * 4 + [End.KEEP] * 4 + [End.RESET, End.HANG, End.DRIP, End.FLOOD]),
    st.sampled_from([b"x", b"\r\n", b"X: y\r\n", b"HTTP/1.1 100 X\r\n\r\n", b"y" * 999]),
)
