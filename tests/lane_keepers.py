"""Versions that drive `tests.lane_env:LaneEnv` well or badly, quick to make and with known returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sklearn.preprocessing import StandardScaler

from carla_policy.loading import LoadedPolicy
from carla_policy_tools.artifact import load_artifact
from tests.policy_server import PREFIX, PolicyServer
from tests.synthetic import make_artifact

ENV = "tests.lane_env:LaneEnv"
FIELDS = [
    {"name": "speed", "unit": "m/s", "low": 0.0, "high": 60.0},
    {"name": "steering", "unit": "1", "low": -1.0, "high": 1.0},
    *({"name": name, "unit": "m", "low": -200.0, "high": 200.0} for name in ("offset", "heading", "gap")),
]


class LaneKeeper(torch.nn.Module):
    """Goes for 10 m/s, and steers back to the lane's centre; with a negative `gain` away from it."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 2)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.weight[0, 0] = -0.3
            self.layer.weight[1, 2], self.layer.weight[1, 3] = -0.5 * gain, -2.0 * gain
            self.layer.bias.copy_(torch.tensor([3.0, 0.0]))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.layer(features),)


class RememberingKeeper(LaneKeeper):
    """Steers by a running mean of what it saw, so that what it does depends on all of the episode."""

    def forward(self, features: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        mean = 0.5 * features + 0.5 * state[:, :5]
        return self.layer(mean), torch.cat([mean, state[:, 5:]], dim=1)


def make_keeper(root: Path, version: str, gain: float = 1.0, *, recurrent: bool = False, **card: Any) -> Path:
    """The artifact of a keeper that observes the lane as it is."""
    return make_artifact(
        root,
        version,
        sensors=3,
        head="deterministic",
        recurrent=recurrent,
        preprocessor=StandardScaler(with_mean=False, with_std=False),
        network=RememberingKeeper(gain) if recurrent else LaneKeeper(gain),
        card={"observation": {"fields": FIELDS}, **card},
    )


def load_keeper(root: Path, version: str = "v1.0.0", gain: float = 1.0, **more: Any) -> LoadedPolicy:
    return load_artifact(make_keeper(root, version, gain, **more))


@contextmanager
def answering(loaded: LoadedPolicy) -> Iterator[str]:
    """The URL at which the handler's own service answers for `loaded`, over HTTP, without TorchServe."""
    with PolicyServer(loaded) as server:
        yield server.url + PREFIX
