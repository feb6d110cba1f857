"""Every class of the table, answered by the service: the exact status and type, and the rest of the batch untouched."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from tests.hostile.answering import actions, answer_all, shown, told
from tests.hostile.broken_documents import BROKEN_DOCUMENTS
from tests.hostile.oracle import verdict
from tests.hostile.subject import Subject
from tests.hostile.wrong_requests import ACCEPTED, WRONG_REQUESTS

TABLE = BROKEN_DOCUMENTS | WRONG_REQUESTS


@pytest.mark.parametrize("name", TABLE)
def test_class_is_refused_with_its_status_and_type(name: str, service: PolicyService, subject: Subject) -> None:
    status, kind, bodies = TABLE[name]
    for number, body in enumerate(make(subject) for make in bodies):
        (answer,) = answer_all(service, [body])
        assert told(answer) == (status, kind), f"{name} {number}: {shown(body)}: {answer.body[:300]!r}"


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_but_valid_request_is_answered(name: str, service: PolicyService, subject: Subject) -> None:
    for body in (make(subject) for make in ACCEPTED[name]):
        (answer,) = answer_all(service, [body])
        assert answer.status == 200, f"{shown(body)}: {answer.body[:300]!r}"


@pytest.mark.parametrize("name", TABLE)
def test_rest_of_the_batch_is_answered_as_if_the_bad_row_were_not_there(
    name: str, service: PolicyService, subject: Subject
) -> None:
    good = [subject.good(row, rows) for row, rows in ((0, 1), (1, 3), (4, 1))]
    alone = [actions(answer) for answer in answer_all(service, good)]
    for bad in (make(subject) for make in TABLE[name][2]):
        first, second, refused, third = answer_all(service, [good[0], good[1], bad, good[2]])
        assert [actions(answer) for answer in (first, second, third)] == alone
        assert told(refused)[0] == TABLE[name][0]


@pytest.mark.parametrize("name", TABLE)
def test_oracle_agrees_with_the_table(name: str, subject: Subject) -> None:
    status, kind, bodies = TABLE[name]
    assert len(bodies) >= 3 or kind == "EMPTY_BODY"
    for body in (make(subject) for make in bodies):
        decided = verdict(body, subject.card)
        assert decided.allows(status, kind), f"{shown(body)}: {decided}"
        assert not decided.allows(200, None)


@pytest.mark.parametrize("name", ACCEPTED)
def test_oracle_accepts_what_is_odd_but_valid(name: str, subject: Subject) -> None:
    for body in (make(subject) for make in ACCEPTED[name]):
        assert verdict(body, subject.card).allows(200, None), shown(body)


def test_message_of_a_refusal_is_short_and_printable(service: PolicyService, subject: Subject) -> None:
    bodies = [make(subject) for _, _, makers in TABLE.values() for make in makers]
    for body, answer in zip(bodies, answer_all(service, bodies), strict=True):
        content = json.loads(answer.body)
        assert len(answer.body) < 5_000, shown(body)
        assert content["message"].isprintable(), shown(body)
        assert content["details"] == [] or content["details"][0]["loc"] in content["message"]


def test_valid_observation_whose_features_are_not_finite_is_out_of_range(
    synthetic: LoadedPolicy, subject: Subject
) -> None:
    class Overflowing:
        form = "compiled"

        def __call__(self, observations: np.ndarray) -> np.ndarray:
            features = synthetic.policy.preprocessor(observations)
            features[observations[:, 0] == 59.0] = np.array([np.inf, np.nan, -np.inf, *features[0, 3:]], np.float32)
            return features

    service = PolicyService(replace(synthetic, policy=replace(synthetic.policy, preprocessor=Overflowing())))
    good = [subject.good(row) for row in range(3)]
    alone = [actions(answer) for answer in answer_all(service, good)]
    bad = [
        subject.speed(b"59"),
        subject.request(observations=[subject.observation(), subject.observation(speed=59)]),
        subject.request(observations=[subject.observation(speed=59)], deterministic=False, seed=1),
    ]
    answers = answer_all(service, [good[0], bad[0], bad[1], good[1], bad[2], good[2]])
    assert [told(answers[place]) for place in (1, 2, 4)] == [(422, "OUT_OF_RANGE")] * 3
    assert [actions(answers[place]) for place in (0, 3, 5)] == alone
