"""Environments of users: what goes wrong inside of them is told, and what they print does not spoil the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carla_policy.errors import ArtifactError
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.export.environments import Environment, make_env
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.overlay import check_overlay
from tests.lane_env import LaneEnv
from tests.synthetic import make_artifact

ACTION = np.zeros(2, np.float32)


def test_failure_inside_is_told_with_its_step() -> None:
    class Late(LaneEnv):
        def step(self, action: Any) -> Any:
            if self.steps == 2:
                raise RuntimeError("no CARLA server at port 2000")
            return super().step(action)

    env = Environment(Late(), "--env Late")
    env.reset(0)
    env.step(ACTION)
    env.step(ACTION)
    with pytest.raises(ExportError, match="--env Late: step 3: RuntimeError: no CARLA server at port 2000"):
        env.step(ACTION)


def test_observation_that_is_not_finite_is_refused() -> None:
    class Lost(LaneEnv):
        def _observation(self) -> Any:
            return np.full(5, np.nan, np.float32)

    with pytest.raises(ExportError, match=r"--env Lost: step 0: observed .*expected finite numbers"):
        Environment(Lost(), "--env Lost").reset(0)


def test_what_an_environment_prints_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    class Chatty(LaneEnv):
        def reset(self, **options: Any) -> Any:
            print("hello")
            return super().reset(**options)

    Environment(Chatty(), "--env Chatty").reset(0)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_environments_are_found_by_module_file_and_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_env("tests.lane_env:LaneEnv", '{"columns": 7}')().reset(1).shape == (7,)
    monkeypatch.setattr("sys.path", ["", str(tmp_path)])
    file = Path(__file__).with_name("lane_env.py")
    assert make_env(f"{file}:LaneEnv")().reset(1).dtype == np.float32
    assert make_env("CartPole-v1")().reset(1).shape == (4,)
    with pytest.raises(ExportError, match=r"--env LostEnv-v0: .*`module:id` or `module:callable`"):
        make_env("LostEnv-v0")()


def test_card_whose_bounds_exclude_real_observations_is_refused(tmp_path: Path) -> None:
    fields = [
        {"name": "speed", "unit": "m/s", "low": 0.0, "high": 60.0},
        {"name": "steering", "unit": "1", "low": -1.0, "high": 1.0},
        *({"name": f"sensor_{n}", "unit": "m", "low": 0.0, "high": 50.0} for n in range(5)),
    ]
    artifact = make_artifact(tmp_path, "v1.0.0", card={"observation": {"fields": fields}})
    with pytest.raises(ArtifactError, match=r"sensor_\d must lie within \[0\.0, 50\.0\], but golden vector \d+ has -"):
        load_artifact(artifact)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"safty": {}}, "safty: not a key of a model card"),
        ({"observation": None}, "observation: expected keys and values, got None"),
        ({"action": ["steer"]}, "action: expected keys and values"),
        ({"observation": {"fields": [1, 2]}}, r"observation\.fields: expected a list of keys and values"),
        ({"safety": {"steer_rate": {"max_change": -1.0}}}, r"safety\.steer_rate\.max_change: .*greater than 0"),
        ({"safety": {"fallback": {"throttle": 1.0, "brake": 0.0, "steer": 0.0}}}, "must not accelerate"),
        ({"parity": {"atol": 1.0}}, r"parity\.atol: .*less than or equal to 0\.001"),
    ],
)
def test_card_of_the_user_is_checked_before_anything_else(overlay: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=rf"--card mine\.yaml: .*{message}|--card mine\.yaml: {message}"):
        check_overlay(Path("mine.yaml"), overlay)
