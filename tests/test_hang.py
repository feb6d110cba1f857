"""A network that hangs for some observations, under a real server: answered in time, and replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from tests.servers import ServeProcess
from tests.synthetic import ROWS as ROWS_RECORDED
from tests.synthetic import make_artifact, observations

ROWS = observations(4, 5)
DEADLINE_MS = 200.0
SAFE = [{"throttle": 0.0, "brake": 1.0, "steer": 0.0}]
ATTEMPTS = 2_000
BOUND = 50.0


class Hanging(torch.nn.Module):
    """Never answers an observation whose last sensor is at its upper bound, which no golden observation has."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.mean = torch.nn.Linear(7, 2)
        self.log_std = torch.nn.Linear(7, 2)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        while bool((features[:, 6] > self.limit).any()):
            features = features + 0.0
        return torch.tanh(self.mean(features)), self.log_std(features) - 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    root = tmp_path_factory.mktemp("hanging")
    torch.manual_seed(1)
    golden = observations(ROWS_RECORDED, 5).astype(np.float64)[:, 6]
    between = (golden.max() + BOUND) / 2
    network = torch.jit.script(Hanging((between - golden.mean()) / golden.std()).eval())
    build(make_artifact(root, "v1.0.0", network=network, card={"inference": {"deadline_ms": DEADLINE_MS}}), root)
    with ServeProcess(root) as process:
        yield process


def ask(server: ServeProcess, row: Any) -> dict[str, Any]:
    response = server.post(None, json.dumps(request_body(row)).encode())
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def worker(server: ServeProcess) -> int:
    return int(server.get("v1.0.0", "metadata").json()["workerPid"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_answers_go_on_and_another_worker_takes_over(server: ServeProcess) -> None:
    own, first = ask(server, ROWS[:1]), worker(server)
    assert "interventions" not in own
    trap = ROWS[:1].copy()
    trap[0, 6] = BOUND
    for row in (trap, ROWS[:1], trap):
        late = ask(server, row)
        assert late["actions"] == SAFE
        assert late["interventions"] == [{"observation": 0, "kind": "deadline"}]
    assert server.get("v1.0.0", "healthz").status_code == 500
    for _ in range(ATTEMPTS):
        response = server.post(None, json.dumps(request_body(ROWS[:1])).encode())
        if response.status_code == 200 and "interventions" not in response.json():
            break
    assert response.json()["actions"] == own["actions"]
    assert worker(server) != first
