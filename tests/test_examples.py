"""The training side for real: train for a moment with stable-baselines3, export, build, and hold against `predict`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO

from carla_policy.loading import LoadedPolicy, load_policy
from carla_policy.safe_pickle import load_preprocessor_pickle
from carla_policy.strict_yaml import parse_yaml
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import build
from carla_policy_tools.export.choices import Choices
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.exporting import export
from carla_policy_tools.export.stable_baselines3 import load_sb3
from carla_policy_tools.paths import PROJECT
from examples.racetrack.driving_env import OBSERVATION_LAYOUT, RAY_RANGE_M, DrivingEnv
from examples.racetrack.evaluate import FIRST_SEED, act_of, drive
from examples.racetrack.train import explore, scale, train
from tests.conftest import ARTIFACTS, SHIPPED

EXAMPLES = PROJECT / "examples"
COLUMN = {field.name: number for number, field in enumerate(OBSERVATION_LAYOUT)}


def test_environment_keeps_gymnasium_s_contract() -> None:
    check_env(DrivingEnv(), skip_render_check=True)


def test_same_seed_and_actions_give_the_same_episode() -> None:
    def rollout() -> bytes:
        env = DrivingEnv()
        rows = [env.reset(seed=3)[0]]
        for step in range(40):
            observation, reward, *_ = env.step(np.array([0.3, 0.2 * np.sin(step)], np.float32))
            rows += [observation, np.float32(reward)[None]]
        return b"".join(row.tobytes() for row in rows)

    assert rollout() == rollout()


def test_border_rays_see_the_edges_of_the_road() -> None:
    """On the first straight, 10 m wide, the distances to both sides add up to the width, whichever the lane."""
    env = DrivingEnv()
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        left, right = observation[COLUMN["border_ray_-90deg"]], observation[COLUMN["border_ray_+90deg"]]
        assert left + right == pytest.approx(10.0, abs=0.3)
        assert min(left, right) == pytest.approx(2.5, abs=0.3)


def test_vehicle_ray_sees_the_vehicle_ahead() -> None:
    env = DrivingEnv()
    env.reset(seed=0)
    ego = env.vehicle
    other = next(vehicle for vehicle in ego.road.vehicles if vehicle is not ego)
    other.position, other.heading, other.speed = ego.position + np.array([15.0, 0.0]), ego.heading, 4.0
    observation = env._observe()
    assert observation[COLUMN["vehicle_ray_+0deg"]] == pytest.approx(15.0 - other.LENGTH / 2, abs=1e-3)
    assert observation[COLUMN["vehicle_ray_+90deg"]] == RAY_RANGE_M
    assert observation[COLUMN["closing_speed"]] == pytest.approx(ego.speed - 4.0, abs=1e-3)


def test_brakes_stop_the_car_and_do_not_reverse_it() -> None:
    env = DrivingEnv(other_vehicles=0)
    observation, _ = env.reset(seed=0)
    for _ in range(40):
        observation, *_ = env.step(np.array([-1.0, 0.0], np.float32))
    assert observation[COLUMN["speed"]] == pytest.approx(0.0, abs=1e-3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PPO, Any, LoadedPolicy]:
    """A checkpoint trained for a moment, its scaler, and the policy as the README's export and build leave it."""
    root = tmp_path_factory.mktemp("training")
    train(root / "run", steps=512, checkpoint_every=10_000, envs=1, seed=1, exploration_steps=400)
    checkpoint = max((root / "run").glob("ppo_*_steps.zip"))
    scaler = load_preprocessor_pickle(root / "run" / "preprocessor.pkl")
    card = parse_yaml((EXAMPLES / "racetrack" / "card.yaml").read_bytes(), "card.yaml")
    artifact = export(
        load_sb3(checkpoint, preprocessor=scaler),
        Choices("v0.0.1", root, steps=400, episodes=4, overlay=card),
        env=lambda: Environment(DrivingEnv(), "--env DrivingEnv"),
        recorded=None,
        progress=lambda *_: None,
    )
    assert artifact.closed_loop is not None
    assert artifact.closed_loop.same_trajectories
    unpack(build(artifact.directory, root / "store").verification.archive, root / "unpacked")
    return PPO.load(checkpoint, device="cpu"), scaler, load_policy(root / "unpacked")


def test_served_policy_predicts_what_the_checkpoint_predicts(exported: tuple[PPO, Any, LoadedPolicy]) -> None:
    """On observations that no golden vector holds, bit for bit."""
    model, scaler, served = exported
    observations = explore(200, seed=99)
    expected = np.stack([model.predict(row, deterministic=True)[0] for row in scale(scaler, observations)])
    evaluation = served.policy.evaluate(observations, served.policy.preprocessor(observations))
    got = served.policy.select(evaluation.parameters, deterministic=True, seed=0)
    assert got.tobytes() == expected.tobytes()


def test_exported_card_tells_where_the_policy_comes_from(exported: tuple[PPO, Any, LoadedPolicy]) -> None:
    model, _, served = exported
    card = served.policy.card
    assert card.framework_versions["stable-baselines3"] == version("stable-baselines3")
    assert card.performance_metrics["training_steps"] == model.num_timesteps == 2048
    assert card.observation.names == tuple(field.name for field in OBSERVATION_LAYOUT)
    assert all(field.seen is not None and field.seen[0] >= field.low for field in card.observation.fields)
    assert card.safety.steer_rate is not None


def test_shipped_policies_drive_as_their_cards_say() -> None:
    """The first seeded episodes of the evaluation, driven by the packaged policies: the later version drives better."""
    results = {}
    for name in SHIPPED:
        results[name] = drive(act_of(ARTIFACTS / name), episodes=2, description=f"{name} from {FIRST_SEED}")
    first, latest = results[SHIPPED[0]], results[SHIPPED[-1]]
    assert latest["completed"] == 2
    assert latest["mean_return"] > first["mean_return"]
    assert latest["mean_episode_length"] > first["mean_episode_length"]
