"""Bodies that claim to be arrays: the exact status and type, and nothing unpickled or allocated on a header's word."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from carla_policy.service import PolicyService
from tests.hostile.answering import answer_all, shown, told
from tests.hostile.http_client import Bystander, Target
from tests.hostile.subject import Subject
from tests.hostile.wrong_arrays import HUGE_SHAPES, NPY, WRONG_ARRAYS, saved


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_class_is_refused_with_its_status_and_type(name: str, service: PolicyService, subject: Subject) -> None:
    status, kind, bodies = WRONG_ARRAYS[name]
    assert len(bodies) >= 3
    for number, body in enumerate(make(subject) for make in bodies):
        (answer,) = answer_all(service, [body], NPY)
        assert told(answer) == (status, kind), f"{name} {number}: {shown(body)}: {answer.body[:300]!r}"


@pytest.mark.parametrize("number", range(len(HUGE_SHAPES)))
def test_announced_size_is_never_allocated(number: int, service: PolicyService, subject: Subject) -> None:
    body = HUGE_SHAPES[number](subject)
    tracemalloc.start()
    try:
        (answer,) = answer_all(service, [body], NPY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status in (400, 422), answer.body
    assert told(answer)[1] in ("INVALID_NPY", "SHAPE", "BATCH_TOO_LARGE")
    assert peak < 5_000_000


def test_order_of_rows_or_columns_makes_no_difference(service: PolicyService, subject: Subject) -> None:
    rows = subject.rows[:9].astype(np.float32)
    by_row, by_column = answer_all(service, [saved(rows), saved(np.asfortranarray(rows))], NPY)
    assert (by_row.status, by_column.status) == (200, 200)
    assert by_row.body == by_column.body


def test_arrays_over_http_are_refused_and_nobody_else_notices(target: Target, served: Subject) -> None:
    workers = target.workers()
    wrong = []
    with Bystander(target, served.good()):
        for name, (status, kind, bodies) in WRONG_ARRAYS.items():
            for number, make in enumerate(bodies):
                reply = target.ask(make(served), NPY)
                if reply.told != (status, kind):
                    wrong.append((name, number, reply))
        assert all(target.ask(make(served), NPY).status in (400, 422) for make in HUGE_SHAPES)
    assert not wrong, wrong[:5]
    assert target.workers() == workers
