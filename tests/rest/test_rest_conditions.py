"""End-to-end tests of conditional requests (RFC 9110, section 13)."""

import pytest

from local.programs import Program
from tests.rest_client import Client, status_and_code


@pytest.fixture
def rest(gateway: Program, organization: str) -> Client:
    return Client(gateway, organization)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_of_what_the_caller_has_is_a_304(rest: Client, method: str) -> None:
    rest.upsert()
    rest.upsert(title="x")
    for known in ('"2"', 'W/"2"', '"1", "2"', 'W/"7",W/"2"', "*"):
        answer = rest.call(method, "/appointments/a", If_None_Match=known)
        assert (answer.status, answer.content) == (304, b""), known
        assert answer.headers["ETag"] == '"2"'
        assert answer.headers["Organization-Revision"] == "2"
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert answer.headers["Content-Type"] is None
    for known in ('"1"', 'W/"1"', '"22"', '"", "*"'):
        answer = rest.call(method, "/appointments/a", If_None_Match=known)
        assert (answer.status, answer.headers["ETag"]) == (200, '"2"'), known
    past = rest.call(method, "/appointments/a", asOfRevision=1, If_None_Match='"1"')
    assert past.status == 304


def test_a_read_takes_if_match(rest: Client) -> None:
    rest.upsert()
    for tags in ('"1"', '"x", "1"', "*"):
        assert rest.call("GET", "/appointments/a", If_Match=tags).status == 200
    for tags in ('"2"', 'W/"1"', '"*"'):
        answer = rest.call("GET", "/appointments/a", If_Match=tags)
        assert status_and_code(answer) == (412, "ETAG_MISMATCH")
        assert answer.headers["Organization-Revision"] == "1"
    # If-Match comes first (13.2.2).
    assert rest.call("GET", "/appointments/a", If_Match='"2"', If_None_Match='"1"').status == 412
    assert rest.call("GET", "/appointments/a", If_Match='"1"', If_None_Match='"1"').status == 304


@pytest.mark.parametrize("header", ["If_Match", "If_None_Match"])
@pytest.mark.parametrize("value", ["1", '"1', "", '*, "1"'])
def test_a_condition_that_cannot_be_read_is_named(rest: Client, header: str, value: str) -> None:
    rest.upsert()
    answer = rest.call("GET", "/appointments/a", **{header: value})
    assert (answer.status, answer.fields) == (400, {header.replace("_", "-")})


def test_a_write_matches_one_of_several_tags(rest: Client) -> None:
    rest.upsert()
    assert rest.upsert(title="1", If_Match='"1", "x"').status == 200
    assert rest.upsert(title="2", If_Match='"x", W/"2", "99", "2"').status == 200
    assert rest.upsert(title="3", If_Match='"1", "2", "x"').json["code"] == "ETAG_MISMATCH"
    assert rest.call("DELETE", "/appointments/a", If_Match='"1", "3"').status == 200
    assert [item["title"] for item in rest.stored()] == []
    entries = rest.call("GET", "/appointments/a/history").json["entries"]
    assert [entry["appointment"]["title"] for entry in entries] == ["", "1", "2", "2"]


def test_the_tag_of_a_compressed_response_is_that_version(rest: Client) -> None:
    rest.upsert(attributes={"notes": "much to say " * 200})
    answer = rest.call("GET", "/appointments/a", Accept_Encoding="gzip")
    assert answer.headers["Content-Encoding"] == "gzip"
    tag = answer.headers["ETag"]
    assert tag == '"1-gzip"'
    assert rest.call("GET", "/appointments/a", If_None_Match=tag).status == 304
    assert rest.upsert(title="1", If_Match=tag).status == 200
    assert status_and_code(rest.upsert(title="2", If_Match=tag)) == (412, "ETAG_MISMATCH")
    assert rest.call("DELETE", "/appointments/a", If_Match='"2-gzip"').status == 200


def test_other_refusals_end_the_search_for_a_tag(rest: Client) -> None:
    rest.upsert("a")
    rest.upsert("b", start="2030-01-07 09:00", end="2030-01-07 10:00")
    taken = rest.upsert("b", If_Match='"x", "2", "y"')
    assert status_and_code(taken) == (409, "TIME_RANGE_CONFLICT")


def test_a_weak_tag_never_matches_a_write(rest: Client) -> None:
    read = rest.upsert().json
    for answer in (
        rest.upsert(title="x", If_Match='W/"1"'),
        rest.post({**read, "title": "x"}, If_Match='W/"1"'),
        rest.call("DELETE", "/appointments/a", If_Match='W/"1"'),
    ):
        assert status_and_code(answer) == (412, "ETAG_MISMATCH")
        assert "double quotes" in answer.json["detail"]
    assert rest.post({**read, "title": "x"}).status == 200
    read = rest.call("GET", "/appointments/a").json
    assert rest.call("DELETE", "/appointments/a", If_Match=f'"{read["etag"]}"').status == 200


def test_if_match_on_nothing_is_a_412(rest: Client) -> None:
    for tags in ("*", '"1"', '"1", "2"'):
        for answer in (
            rest.call("DELETE", "/appointments/a", If_Match=tags),
            rest.call("GET", "/appointments/a", If_Match=tags),
            rest.upsert("a", If_Match=tags),
        ):
            assert status_and_code(answer) == (412, "ETAG_MISMATCH")
            assert answer.headers["Organization-Revision"] == "0"
    assert rest.call("DELETE", "/appointments/a").status == 404
    assert rest.call("GET", "/appointments/a", If_None_Match="*").status == 404


def test_a_write_does_not_take_tags_that_must_not_match(rest: Client) -> None:
    for tags in ('"2"', 'W/"2"', '"1", "2"'):
        answer = rest.upsert(If_None_Match=tags)
        assert (answer.status, answer.fields) == (400, {"If-None-Match"})
    assert rest.stored() == []


def test_an_accepted_write_with_several_tags_is_made_at_once(rest: Client) -> None:
    rest.upsert()
    answer = rest.upsert(title="x", If_Match='"x", "1"', Prefer="respond-async")
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, None)
    accepted = rest.upsert(title="y", If_Match='"2"', Prefer="respond-async")
    assert accepted.status == 202


def test_what_has_no_etag_has_no_conditions(rest: Client) -> None:
    """Reads ignore them, writes refuse them."""
    body = b'{"url": "https://example.com/"}'
    for target in ("/appointments/a/history", "/changes", "/webhooks"):
        if "history" in target:
            rest.upsert()
        assert rest.call("GET", target, If_None_Match="*", If_Match='"x"').status == 200
    content = {"Content_Type": "application/json"}
    for method, target, sent in (
        ("POST", "webhooks", body),
        ("PUT", "webhooks/w", body),
        ("DELETE", "webhooks/w", None),
    ):
        for header in ("If-Match", "If-None-Match"):
            headers = {**(content if sent else {}), header: "*"}
            answer = rest.send(method, f"/api/{target}", sent, **headers)
            assert (answer.status, answer.fields) == (400, {header})
