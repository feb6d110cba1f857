"""Policies that drive in `tests.lane_env:LaneEnv` with seven columns, made for the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from carla_policy.loading import LoadedPolicy
from carla_policy_tools.artifact import load_artifact
from tests.synthetic import make_artifact

LANE_ENV, LANE_ARGUMENTS = "tests.lane_env:LaneEnv", '{"columns": 7}'
FIELDS = [
    {"name": "speed", "unit": "m/s", "low": 0.0, "high": 60.0},
    {"name": "steering", "unit": "1", "low": -1.0, "high": 1.0},
    *({"name": f"sensor_{number}", "unit": "m", "low": -200.0, "high": 200.0} for number in range(5)),
]


def lane_artifact(root: Path, version: str = "v1.0.0", **options: Any) -> Path:
    """Its directory below `root`; `options` are `make_artifact`'s."""
    card = {"observation": {"fields": FIELDS}, **options.pop("card", {})}
    return make_artifact(root, version, card=card, **options)


def lane_policy(root: Path, version: str = "v1.0.0", **options: Any) -> LoadedPolicy:
    """The same, loaded."""
    return load_artifact(lane_artifact(root, version, **options))
