"""Random bodies against the oracle: each is answered with one of its own faults, or with an action if it has none.

`HOSTILE_EXAMPLES=100000 pytest tests/hostile/test_random_bodies.py` draws as many as a release is tested with, which
takes several minutes; a plain run draws 3,000. `HOSTILE_SEED` draws others.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from carla_policy.service import PolicyService
from tests.hostile.answering import actions, answer_all, shown, told
from tests.hostile.mutations import bodies
from tests.hostile.oracle import verdict
from tests.hostile.subject import Subject

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "3000"))
SEED = int(os.environ.get("HOSTILE_SEED", "20261121"))
BATCH = 8


def test_each_body_is_answered_as_the_oracle_says(
    service: PolicyService, subject: Subject, record_property: pytest.RecordProperty
) -> None:
    good = subject.good(7)
    (alone,) = answer_all(service, [good])
    expected, seen = actions(alone), Counter[object]()

    @seed(SEED)
    @settings(
        max_examples=max(1, EXAMPLES // BATCH),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(bodies(subject), min_size=BATCH, max_size=BATCH), st.integers(0, BATCH))
    def check(drawn: list[bytes], place: int) -> None:
        answers = answer_all(service, [*drawn[:place], good, *drawn[place:]])
        assert actions(answers.pop(place)) == expected
        for body, answer in zip(drawn, answers, strict=True):
            status, kind = told(answer)
            allowed = verdict(body, subject.card)
            assert allowed.allows(status, kind), f"{shown(body)}: {answer.body[:300]!r}, expected {allowed}"
            seen[kind] += 1

    check()
    record_property("answers", dict(seen))
    print(f"{sum(seen.values())} bodies: {dict(seen.most_common())}")
    assert {None, "INVALID_JSON", "INVALID_ENCODING", "DUPLICATE_KEY", "SCHEMA", "SHAPE", "OUT_OF_RANGE"} <= seen.keys()
