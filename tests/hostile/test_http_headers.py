"""Headers and methods that no client of ours sends: nothing in them is trusted, echoed raw, or fatal."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

import pytest

from tests.hostile.http_client import JSON, Bystander, Target, first_reply
from tests.hostile.subject import Subject
from tests.hostile.wrong_headers import ECHOED, UNSAFE_VALUES

METHODS = ("GET", "PUT", "DELETE", "PATCH")
CLAIMS = ("describe", "explain", "url_path")


@pytest.mark.parametrize("method", METHODS)
def test_method_without_a_body_finds_nothing_to_answer(method: str, target: Target) -> None:
    for headers in (JSON, {}, {"accept": "text/html"}):
        assert target.ask(b"", headers, method=method).told == (400, "EMPTY_BODY")


def test_head_is_answered_without_a_body(target: Target) -> None:
    reply = target.ask(b"", {}, method="HEAD")
    assert (reply.status, reply.content) == (400, b"")


@pytest.mark.parametrize("method", METHODS)
def test_method_with_a_body_is_read_as_a_post(method: str, target: Target, served: Subject) -> None:
    assert target.ask(served.good(), method=method).actions == target.ask(served.good()).actions
    assert target.ask(b"{", method=method).told == (400, "INVALID_JSON")


def test_method_that_nobody_knows_is_no_fault_of_the_server(target: Target, served: Subject) -> None:
    workers = target.workers()
    with Bystander(target, served.good()):
        for method in ("OPTIONS", "TRACE", "PROPFIND", "BREW", "post", "A" * 1_000, "-"):
            assert target.ask(b"", {}, method=method).status < 500
    assert target.workers() == workers


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(
    "value", [b"True", b"healthz", b"metadata", b"", b"/", b"..", b"a" * 4_000, b"\xff\xfe", b"openapi.json"]
)
def test_claim_in_a_header_changes_no_prediction(claim: str, value: bytes, target: Target, served: Subject) -> None:
    expected = target.ask(served.good()).actions
    for name in (claim, claim.upper(), claim.title()):
        assert target.ask(served.good(), {**JSON, name: value}).actions == expected
        assert target.ask(b"{", {**JSON, name: value}).told == (400, "INVALID_JSON")


@pytest.mark.parametrize("name", ECHOED)
def test_safe_value_comes_back_and_unsafe_does_not(name: str, target: Target, served: Subject) -> None:
    assert target.ask(served.good(), {**JSON, name.upper(): "car-7:42"}).headers[ECHOED[name]] == "car-7:42"
    for value in UNSAFE_VALUES:
        reply = target.ask(served.good(), {**JSON, name: value})
        assert reply.status == 200
        assert ECHOED[name] not in reply.headers
        assert value.decode("latin-1") not in reply.headers.values()
        refused = target.ask(b"{", {**JSON, name: value})
        assert refused.told == (400, "INVALID_JSON")
        assert value not in refused.content


@pytest.mark.parametrize(
    "name", ["content-type", "content-encoding", "accept", "user-agent", "x-policy-seed", "x-policy-deterministic"]
)
def test_bytes_beyond_ascii_in_a_header_are_no_fault_of_the_server(name: str, target: Target, served: Subject) -> None:
    workers = target.workers()
    refused = (415, "UNSUPPORTED_MEDIA_TYPE")
    expected = defaultdict(lambda: (200, None), {"content-type": refused, "content-encoding": refused})
    with Bystander(target, served.good()):
        for value in UNSAFE_VALUES:
            reply = target.ask(served.good(), {name: value})
            assert reply.told == expected[name]
            assert reply.content.isascii()
            assert reply.content.decode().isprintable()
            assert all(text.isascii() for text in reply.headers.values())
    assert target.workers() == workers


def test_line_breaks_in_a_header_value_split_no_answer(target: Target, served: Subject) -> None:
    body = served.good()
    for end in (b"\r\n", b"\n", b"\r", b"\r\n\t", b"\0"):
        request = (
            f"POST {target.path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body)}\r\n".encode()
            + b"content-type: application/json\r\nx-request-id: a"
            + end
            + b"set-cookie: b=c\r\n\r\n"
            + body
        )
        reply = first_reply(target.port, request)
        assert reply.status in (200, 400)
        assert "set-cookie" not in reply.headers
        assert b"set-cookie" not in reply.content.lower()


def test_many_and_repeated_headers_are_answered_or_refused(target: Target, served: Subject) -> None:
    workers = target.workers()
    many = {**JSON, **{f"x-{number}": "a" * 20 for number in range(200)}}
    assert target.ask(served.good(), many).status == 200
    with suppress(ConnectionError):  # closed by the front end while the header is still being sent
        assert 400 <= target.ask(served.good(), {**JSON, "x-big": "a" * 100_000}).status < 500
    body = served.good()
    head = f"POST {target.path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body)}\r\n".encode()
    twice = b"content-type: application/json\r\ncontent-type: text/plain\r\n\r\n"
    assert first_reply(target.port, head + twice + body).status in (200, 415)
    assert target.workers() == workers


SPELLINGS = [
    ("content-type: application/json", "Content-Type: text/plain", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("Content-Type: text/plain", "content-type: application/json", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("content-encoding: identity", "Content-Encoding: gzip", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("content-encoding: gzip", "Content-Encoding: identity", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("x-policy-deadline-ms: 50000", "X-Policy-Deadline-Ms: 40000", 422, "INVALID_OPTION"),
    ("x-policy-seed: 1", "X-POLICY-SEED: 2", 422, "INVALID_OPTION"),
    ("x-policy-deterministic: true", "X-Policy-Deterministic: false", 422, "INVALID_OPTION"),
    ("x-request-start: t=1700000000000", "X-Request-Start: t=1700000000001", 422, "INVALID_OPTION"),
]


@pytest.mark.parametrize(("first", "second", "status", "kind"), SPELLINGS, ids=[row[0] for row in SPELLINGS])
def test_header_that_matters_in_two_spellings_is_refused(
    first: str, second: str, status: int, kind: str, target: Target, served: Subject
) -> None:
    """Whichever of the two the front end, a proxy or the handler believes."""
    body = served.good()
    typed = [] if first.lower().startswith("content-type") else ["content-type: application/json"]
    own = [f"POST {target.path} HTTP/1.1", "host: a", "connection: close", f"content-length: {len(body)}", *typed]
    for pair in ([first, second], [second, first]):
        reply = first_reply(target.port, "\r\n".join([*own, *pair, "", ""]).encode() + body)
        assert reply.told == (status, kind)
        assert reply.content.isascii()


def test_header_that_does_not_matter_may_come_in_two_spellings(target: Target, served: Subject) -> None:
    head = f"POST {target.path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(served.good())}\r\n"
    pair = "accept: text/html\r\nAccept: application/json\r\nurl_path: healthz\r\nURL_PATH: metadata\r\n\r\n"
    assert first_reply(target.port, (head + pair).encode() + served.good()).actions == target.ask(served.good()).actions
