"""Every class of the table over HTTP, while somebody else asks properly: the same status and type as in process."""

from __future__ import annotations

import json

from tests.hostile.answering import shown
from tests.hostile.broken_documents import BROKEN_DOCUMENTS
from tests.hostile.http_client import Bystander, Reply, Target, first_reply
from tests.hostile.subject import Subject
from tests.hostile.wrong_headers import ACCEPTED as ACCEPTED_HEADERS
from tests.hostile.wrong_headers import FORM, UNSUPPORTED, compressed, multipart
from tests.hostile.wrong_requests import ACCEPTED, WRONG_REQUESTS


def test_bodies(target: Target, served: Subject) -> None:
    workers = target.workers()
    wrong = []
    with Bystander(target, served.good()) as bystander:
        for name, (status, kind, bodies) in (BROKEN_DOCUMENTS | WRONG_REQUESTS).items():
            for number, body in enumerate(make(served) for make in bodies):
                reply = target.ask(body)
                if reply.told != (status, kind):
                    wrong.append((name, number, shown(body), reply))
        for name, accepted in ACCEPTED.items():
            wrong += [(name, reply) for make in accepted if (reply := target.ask(make(served))).status != 200]
    assert not wrong, wrong[:5]
    assert target.workers() == workers
    assert bystander.answered > 0


def test_declared_types(target: Target, served: Subject) -> None:
    workers = target.workers()
    with Bystander(target, served.good(1)):
        for headers in (headers for examples in UNSUPPORTED.values() for headers in examples):
            assert target.ask(served.good(), headers).told == (415, "UNSUPPORTED_MEDIA_TYPE"), headers
        expected = target.ask(served.good()).actions
        for headers in (headers for examples in ACCEPTED_HEADERS.values() for headers in examples):
            assert target.ask(served.good(), headers).actions == expected, headers
    assert target.workers() == workers


def test_compressed_body_is_never_inflated(target: Target, served: Subject) -> None:
    for coding, body in compressed(served).items():
        declared = {"content-type": "application/json", "content-encoding": coding}
        assert target.ask(body, declared).told == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert target.ask(body).told[0] == 400


def test_form_is_refused_whatever_its_fields_are_called(target: Target, served: Subject) -> None:
    fields = [b"url_path=healthz", b"describe=True", b"body=" + served.good(), b"data=1&body=2", b"a", b"%", b"a=b=c&a"]
    for body in (*fields, served.good()):
        assert target.ask(body, {"content-type": FORM}).told == (415, "UNSUPPORTED_MEDIA_TYPE"), body
    assert target.ask(b"", {"content-type": FORM}).told[0] in (400, 415)


def test_form_that_the_front_end_cannot_decode_never_reaches_a_worker(target: Target, served: Subject) -> None:
    """TorchServe 0.12 answers these itself, with a 500 of its own, and the connection and the worker live on."""
    workers = target.workers()
    with Bystander(target, served.good()):
        for body in (b"a=%zz", b"%ff%00=%", b"&&=&"):
            reply = target.ask(body, {"content-type": FORM})
            assert reply.told == (500, "ErrorDataDecoderException")
            assert "x-policy-version" not in reply.headers
    assert target.workers() == workers


def test_multipart_is_refused_whatever_its_parts_are_called(target: Target, served: Subject) -> None:
    names = (
        "url_path",
        "describe",
        "explain",
        "content-type",
        "Content-Type",
        "x-request-id",
        "traceparent",
        "body",
        "data",
    )
    workers = target.workers()
    with Bystander(target, served.good(2)):
        for name in names:
            for content in (served.good(), b"healthz", b"True", b"application/json", b""):
                headers, body = multipart({name: content})
                assert_refused_form(target.ask(body, headers))
                headers, body = multipart({name: content, "body": served.good()})
                assert_refused_form(target.ask(body, headers))
                assert_refused_form(target.ask(body, {**headers, "url_path": "healthz", "describe": "True"}))
        headers, body = multipart({"body": served.good()})
        for cut in range(0, len(body), max(1, len(body) // 20)):
            assert_refused_form(target.ask(body[:cut], headers))
    assert target.workers() == workers


def assert_refused_form(reply: Reply) -> None:
    assert 400 <= reply.status < 500, reply
    assert b"actions" not in reply.content
    assert "status" not in json.loads(reply.content or b"{}")


def test_body_beyond_the_front_end_s_limit_is_refused_before_it_reaches_a_worker(
    target: Target, served: Subject
) -> None:
    workers = target.workers()
    head = f"POST {target.path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n".encode()
    with Bystander(target, served.good(3)):
        for length in (2**30, 2**31 - 1, 2**40):
            reply = first_reply(target.port, head + b"content-length: %d\r\n\r\n{" % length)
            assert (reply.status, reply.content) == (413, b"")
    assert target.workers() == workers
