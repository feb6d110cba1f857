"""Every file of JSONTestSuite's parsing set, by itself and inside a request: in this process and over HTTP."""

from __future__ import annotations

import pytest

from carla_policy.service import PolicyService
from tests.hostile.answering import answer_all, shown, told
from tests.hostile.corpus import FILES, document, expected, is_broken_inside
from tests.hostile.http_client import Bystander, Target
from tests.hostile.oracle import verdict
from tests.hostile.subject import Subject


def test_corpus_is_whole() -> None:
    assert [sum(name.startswith(letter) for name in FILES) for letter in "yni"] == [95, 188, 35]


@pytest.mark.parametrize("name", FILES)
def test_file_by_itself_is_refused(name: str, service: PolicyService, subject: Subject) -> None:
    body = document(name)
    (answer,) = answer_all(service, [body])
    assert told(answer) in expected(name), shown(body)
    assert verdict(body, subject.card).allows(*told(answer)), shown(body)


@pytest.mark.parametrize("name", FILES)
def test_file_inside_a_request_is_refused_or_it_is_a_valid_value(
    name: str, service: PolicyService, subject: Subject
) -> None:
    places = subject.anywhere(document(name))
    for place, answer in zip(places, answer_all(service, list(places.values())), strict=True):
        body = places[place]
        assert verdict(body, subject.card).allows(*told(answer)), f"{place}: {shown(body)}: {answer.body[:200]!r}"
        if is_broken_inside(name):
            assert answer.status == 400, place


def test_valid_numbers_of_the_corpus_are_read_as_speeds(service: PolicyService, subject: Subject) -> None:
    numbers = [name for name in FILES if name.startswith("y_structure_lonely_int")]
    assert [told(answer) for answer in answer_all(service, [subject.speed(document(name)) for name in numbers])] == [
        (200, None)
    ]


def test_files_over_http_are_refused_and_nobody_else_notices(target: Target, served: Subject) -> None:
    workers = target.workers()
    wrong = []
    with Bystander(target, served.good()):
        for name in FILES:
            reply = target.ask(document(name))
            if reply.told not in expected(name):
                wrong.append((name, reply))
            for place, body in served.anywhere(document(name)).items():
                if place in ("speed", "observations"):
                    reply = target.ask(body)
                    if not verdict(body, served.card).allows(*reply.told):
                        wrong.append((name, place, reply))
    assert not wrong, wrong[:5]
    assert target.workers() == workers
