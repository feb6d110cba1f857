"""Whether a contender answers what the policy does: asked before it is measured, and again afterwards."""

from __future__ import annotations

import json
import math
from typing import Any

from benchmarks.bench.client import Client
from benchmarks.contenders.base import Contender
from carla_policy.actions import CONTROLS

TOLERANCE = 1e-5
"""Contenders scale in another order of operations than training did; a wrong policy differs by far more."""


class WrongAnswer(RuntimeError):
    """A contender does not answer the workload's observations with the workload's actions."""


def check_answers(contender: Contender) -> float:
    """The largest difference of an action from the policy's own; `WrongAnswer` says which answer is wrong.

    A contender that does not act is only asked for a 200 and an answer as long as ours.
    """
    workload, largest = contender.workload, 0.0
    with Client(contender.url) as client:
        for row, body in enumerate(workload.bodies):
            answer = client.send(client.request(body.encode()))
            if answer.status != 200:
                raise WrongAnswer(f"{contender.name}, observation {row}: status {answer.status}: {answer.body[:200]!r}")
            if not contender.acts:
                if len(answer.body) != len(workload.answer):
                    raise WrongAnswer(f"{contender.name}: {len(answer.body)} bytes, expected {len(workload.answer)}")
                continue
            largest = max(largest, _difference(contender.name, row, answer.body, workload.controls[row].tolist()))
    return largest


def _difference(name: str, row: int, body: bytes, expected: list[float]) -> float:
    try:
        actions: list[dict[str, Any]] = json.loads(body)["actions"]
        got = [float(actions[0][control]) for control in CONTROLS]
        rows = len(actions)
    except (ValueError, KeyError, TypeError, IndexError):
        raise WrongAnswer(f"{name}, observation {row}: no action in {body[:200]!r}") from None
    difference = max(abs(one - other) for one, other in zip(got, expected, strict=True))
    if rows != 1 or not difference <= TOLERANCE or not math.isfinite(difference):
        raise WrongAnswer(f"{name}, observation {row}: expected {expected}, got {got} in {rows} actions")
    return difference
