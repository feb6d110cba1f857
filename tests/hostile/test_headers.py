"""What a body is declared to be, in process: refused by its type, or read as JSON."""

from __future__ import annotations

import pytest

from carla_policy.service import PolicyService
from tests.hostile.answering import actions, answer_all, told
from tests.hostile.subject import Subject
from tests.hostile.wrong_headers import ACCEPTED, UNSUPPORTED, compressed


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_class_is_refused_with_its_status_and_type(name: str, service: PolicyService, subject: Subject) -> None:
    assert len(UNSUPPORTED[name]) >= 3
    for headers in UNSUPPORTED[name]:
        for body in (subject.good(), b"{", b""):
            (answer,) = answer_all(service, [body], headers)
            assert told(answer) == (415, "UNSUPPORTED_MEDIA_TYPE"), headers
            assert answer.body.isascii()
            assert len(answer.body) < 1_000


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_but_valid_declaration_is_answered(name: str, service: PolicyService, subject: Subject) -> None:
    (expected,) = answer_all(service, [subject.good()])
    for headers in ACCEPTED[name]:
        (answer,) = answer_all(service, [subject.good()], headers)
        assert actions(answer) == actions(expected), headers


def test_compressed_body_is_never_inflated(service: PolicyService, subject: Subject) -> None:
    for coding, body in compressed(subject).items():
        declared = {"content-type": "application/json", "content-encoding": coding}
        assert [told(answer) for answer in answer_all(service, [body], declared)] == [(415, "UNSUPPORTED_MEDIA_TYPE")]
        assert [answer.status for answer in answer_all(service, [body])] == [400]
