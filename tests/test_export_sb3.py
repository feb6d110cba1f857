"""stable-baselines3 and sb3-contrib, the real ones: what goes in comes out as `model.predict` has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from carla_policy.batch import Request
from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.client import request_body
from carla_policy_tools.export import stable_baselines3
from carla_policy_tools.export.choices import Choices
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.exporting import Export, export
from carla_policy_tools.export.rollouts import Rollouts
from carla_policy_tools.export.stable_baselines3 import load_sb3
from tests.lane_env import GRID, LaneEnv

TABLE = [{"throttle": max(a, 0.0), "brake": max(-a, 0.0), "steer": s} for a, s in GRID]
ON_POLICY = {"n_steps": 64, "batch_size": 64}
OFF_POLICY = {"learning_starts": 50, "buffer_size": 500}
SDE = {"use_sde": True}
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ppo": (PPO, ON_POLICY, {}),
    "ppo with gSDE": (PPO, {**ON_POLICY, **SDE}, {}),
    "ppo with gSDE, squashed": (PPO, {**ON_POLICY, **SDE, "policy_kwargs": {"squash_output": True}}, {"bounds": 2.0}),
    "ppo with own features": (PPO, {**ON_POLICY, "policy_kwargs": {"share_features_extractor": False}}, {}),
    "discrete ppo": (PPO, ON_POLICY, {"discrete": True}),
    "a2c": (A2C, {}, {"bounds": 5.0}),
    "sac": (SAC, OFF_POLICY, {"bounds": 2.0}),
    "sac with gSDE": (SAC, {**OFF_POLICY, **SDE}, {}),
    "td3": (TD3, OFF_POLICY, {"bounds": 2.0}),
    "ddpg": (DDPG, OFF_POLICY, {}),
    "dqn": (DQN, OFF_POLICY, {"discrete": True}),
    "trpo": (TRPO, {"n_steps": 64, "batch_size": 64}, {}),
    "tqc": (TQC, OFF_POLICY, {}),
    "qr-dqn": (QRDQN, OFF_POLICY, {"discrete": True}),
}


def train(
    directory: Path,
    algorithm: Any,
    options: dict[str, Any],
    env: dict[str, Any],
    *,
    normalize: bool,
    make: Callable[..., Any] = LaneEnv,
) -> Any:
    """A model and its statistics, trained for a moment and saved as their users save them."""
    vectorized: Any = DummyVecEnv([lambda: make(**env)])
    vectorized = VecNormalize(vectorized, clip_obs=5.0) if normalize else vectorized
    options = dict(options)
    model = algorithm(options.pop("policy", "MlpPolicy"), vectorized, seed=3, device="cpu", **options)
    model.learn(128)
    model.save(directory / "model.zip")
    if normalize:
        vectorized.save(directory / "statistics.pkl")
    return model


def exported(root: Path, source: Any, env: Callable[[], Any] | None = LaneEnv, **choices: Any) -> Export:
    defaults: dict[str, Any] = {
        "version": "v1.0.0",
        "artifacts": root,
        "layout": ("acceleration", "steer"),
        "steps": 600,
    }
    if source.action.choices:
        defaults |= {"layout": (), "table": TABLE}
    made = None if env is None else lambda: Environment(env(), "--env LaneEnv")
    return export(source, Choices(**(defaults | choices)), env=made, recorded=None, progress=lambda *_: None)


def served(loaded: LoadedPolicy, observations: Any, **options: Any) -> dict[str, Any]:
    service = PolicyService(loaded)
    body = {**request_body(observations), **options}
    (answer,) = service.encode(service.infer(service.parse([Request(json.dumps(body).encode())])))
    assert answer.status == 200, answer.body
    return dict(json.loads(answer.body))


def expected_controls(model: Any, statistics: Any, observations: Any, scale: float) -> Any:
    seen = observations if statistics is None else statistics.normalize_obs(observations)
    actions = np.stack([np.asarray(model.predict(row, deterministic=True)[0]) for row in seen])
    pairs = np.array([GRID[int(action)] for action in actions]) if actions.ndim == 1 else actions / scale
    return np.stack([np.maximum(pairs[:, 0], 0), np.maximum(-pairs[:, 0], 0), pairs[:, 1]], axis=1)


def fresh_observations(rows: int = 200) -> Any:
    rng = np.random.default_rng(7)
    ranges = ((5, 15), (-1, 1), (-2, 2), (-0.2, 0.2), (10, 90))
    return np.stack([rng.uniform(*ends, rows) for ends in ranges], axis=1).astype(np.float32)


@pytest.mark.parametrize("normalize", [True, False], ids=["VecNormalize", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_served_actions_are_those_of_predict(tmp_path: Path, kind: str, normalize: bool) -> None:
    algorithm, options, env = KINDS[kind]
    model = train(tmp_path, algorithm, options, env, normalize=normalize)
    statistics = model.get_vec_normalize_env()
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl" if normalize else None)
    result = exported(tmp_path, source, partial(LaneEnv, **env))
    loaded = load_artifact(result.directory)
    rows = fresh_observations()
    actions = served(loaded, rows)["actions"]
    got = np.array([[action["throttle"], action["brake"], action["steer"]] for action in actions])
    assert np.abs(got - expected_controls(model, statistics, rows, env.get("bounds", 1.0))).max() <= 1e-6
    assert result.closed_loop is not None
    assert result.closed_loop.bit_equal_actions == 1.0
    assert result.closed_loop.same_trajectories
    assert all(stage.max_abs_difference <= 1e-6 for stage in result.parity)


@pytest.mark.parametrize("runtime", ["onnx", "pt2"])
def test_other_runtimes_answer_the_same_within_the_stated_tolerance(tmp_path: Path, runtime: str) -> None:
    model = train(tmp_path, SAC, OFF_POLICY, {}, normalize=True)
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl")
    result = exported(tmp_path, source, runtime=runtime)
    loaded = load_artifact(result.directory)
    rows = fresh_observations()
    got = np.array([list(action.values()) for action in served(loaded, rows)["actions"]])
    expected = expected_controls(model, model.get_vec_normalize_env(), rows, 1.0)
    assert np.abs(got - expected).max() <= loaded.policy.card.parity.atol
    assert loaded.policy.card.model_file == {"onnx": "model.onnx", "pt2": "model.pt2"}[runtime]


class TestRecurrentPolicy:
    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LoadedPolicy]:
        root = tmp_path_factory.mktemp("recurrent")
        options = {
            **ON_POLICY,
            "policy": "MlpLstmPolicy",
            "policy_kwargs": {"lstm_hidden_size": 16, "n_lstm_layers": 2},
        }
        model = train(root, RecurrentPPO, options, {}, normalize=True)
        source = load_sb3(root / "model.zip", vecnormalize=root / "statistics.pkl")
        return model, load_artifact(exported(root, source).directory)

    def drive(self, model: Any, observations: Any) -> Any:
        """stable-baselines3's own loop over one episode."""
        state, actions = None, []
        for step, row in enumerate(model.get_vec_normalize_env().normalize_obs(observations)):
            action, state = model.predict(row, state=state, episode_start=np.array([step == 0]), deterministic=True)
            actions.append(action)
        return np.stack(actions)

    def test_state_travels_with_the_client(self, trained: tuple[Any, LoadedPolicy]) -> None:
        model, loaded = trained
        rows, options, got = fresh_observations(30), {"episode_start": True}, []
        for row in rows:
            answer = served(loaded, row[None], **options)
            got.append(answer["actions"][0]["steer"])
            options = {"state": answer["state"]}
        assert got == self.drive(model, rows)[:, 1].tolist()

    def test_clients_in_one_request_and_in_any_order_do_not_mix(self, trained: tuple[Any, LoadedPolicy]) -> None:
        model, loaded = trained
        rows = fresh_observations(40).reshape(2, 20, -1)
        alone = [self.drive(model, episode)[:, 1].tolist() for episode in rows]
        options: dict[str, Any] = {"episode_start": True}
        together: list[list[float]] = [[], []]
        for step in range(20):
            answer = served(loaded, rows[:, step], **options)
            for client, action in enumerate(answer["actions"]):
                together[client].append(action["steer"])
            options = {"state": answer["state"]}
        assert together == alone

    def test_one_of_several_episodes_starts_anew(self, trained: tuple[Any, LoadedPolicy]) -> None:
        model, loaded = trained
        rows = fresh_observations(3)
        first = served(loaded, rows[:2], episode_start=True)
        second = served(loaded, rows[[2, 2]], state=first["state"], episode_start=[False, True])
        assert second["actions"][0]["steer"] == self.drive(model, rows[[0, 2]])[1, 1]
        assert second["actions"][1]["steer"] == self.drive(model, rows[[2]])[0, 1]


class TestRefusal:
    """Every refusal says what to do."""

    @pytest.fixture(scope="class")
    @classmethod
    def models(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("models")
        kinds: dict[str, tuple[Any, dict[str, Any], dict[str, Any], bool]] = {
            "ppo": (PPO, ON_POLICY, {}, False),
            "ppo_normalized": (PPO, ON_POLICY, {}, True),
            "sac": (SAC, OFF_POLICY, {}, False),
            "sac_normalized": (SAC, OFF_POLICY, {}, True),
            "dqn": (DQN, OFF_POLICY, {"discrete": True}, False),
        }
        for name, (algorithm, options, env, normalize) in kinds.items():
            (root / name).mkdir()
            train(root / name, algorithm, options, env, normalize=normalize)
        return root

    @pytest.mark.parametrize("name", ["ppo_normalized", "sac_normalized"])
    def test_checkpoint_without_its_statistics(self, models: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(ExportError, match=r"trained with VecNormalize .*--vecnormalize; or --no-vecnormalize"):
            exported(tmp_path, load_sb3(models / name / "model.zip"))
        assert list(tmp_path.iterdir()) == []
        insisting = load_sb3(models / name / "model.zip", without_normalization=True)
        assert exported(tmp_path, insisting).directory.is_dir()

    def test_statistics_beside_the_checkpoint_are_not_forgotten(self, models: Path, tmp_path: Path) -> None:
        for name, refused in (("vecnormalize", True), ("best_vec_normalize", True), ("rewards", False)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "best.zip").write_bytes((models / "sac" / "model.zip").read_bytes())
            (tmp_path / name / f"{name}.pkl").write_bytes(b"")
            if refused:
                with pytest.raises(ExportError, match=rf"{name}\.pkl lies beside it"):
                    load_sb3(tmp_path / name / "best.zip")
            else:
                load_sb3(tmp_path / name / "best.zip")

    def test_statistics_of_another_run(self, models: Path, tmp_path: Path) -> None:
        env: Any = VecNormalize(DummyVecEnv([LaneEnv]))
        env.obs_rms.mean = env.obs_rms.mean + 100.0
        env.save(tmp_path / "other.pkl")
        with pytest.raises(ExportError, match="not the statistics that this model was trained with"):
            load_sb3(models / "sac_normalized" / "model.zip", vecnormalize=tmp_path / "other.pkl")
        with pytest.raises(ExportError, match="this model was trained without VecNormalize"):
            load_sb3(models / "ppo" / "model.zip", vecnormalize=tmp_path / "other.pkl")
        env = VecNormalize(DummyVecEnv([partial(LaneEnv, columns=7)]))
        env.save(tmp_path / "wide.pkl")
        with pytest.raises(ExportError, match="statistics of other observations"):
            load_sb3(models / "ppo" / "model.zip", vecnormalize=tmp_path / "wide.pkl")

    def test_files_that_are_no_model(self, models: Path, tmp_path: Path) -> None:
        (tmp_path / "text.zip").write_text("no zip")
        for path, reason in ((tmp_path / "none.zip", "No such file"), (tmp_path / "text.zip", "no model of stable")):
            with pytest.raises(ExportError, match=reason):
                load_sb3(path)
        with pytest.raises(ExportError, match=r"expected a saved VecNormalize|not what VecNormalize\.save"):
            load_sb3(models / "ppo" / "model.zip", vecnormalize=tmp_path / "text.zip")
        with pytest.raises(ExportError, match="algorithm 'alphago': expected one of ppo"):
            load_sb3(models / "ppo" / "model.zip", algorithm="alphago")
        with pytest.raises(ExportError, match="does not load as DQN"):
            load_sb3(models / "ppo" / "model.zip", algorithm="dqn")

    def test_what_only_the_user_can_know(self, models: Path, tmp_path: Path) -> None:
        ppo, dqn = load_sb3(models / "ppo" / "model.zip"), load_sb3(models / "dqn" / "model.zip")
        with pytest.raises(ExportError, match="name an --env to drive in, or --observations"):
            exported(tmp_path, ppo, None)
        with pytest.raises(ExportError, match="--layout throttle,brake,steer: the action has 2 dimensions"):
            exported(tmp_path, ppo, layout=("throttle", "brake", "steer"))
        with pytest.raises(ExportError, match=r"chooses among 6 actions.*name a --table"):
            exported(tmp_path, dqn, partial(LaneEnv, discrete=True), table=())
        with pytest.raises(ExportError, match="chooses among 6 actions, the table has 2 rows"):
            exported(tmp_path, dqn, partial(LaneEnv, discrete=True), table=TABLE[:2])
        with pytest.raises(ExportError, match=r"--env: actions .* are not those of the policy"):
            exported(tmp_path, ppo, partial(LaneEnv, discrete=True))
        with pytest.raises(ExportError, match="the policy sees 5 numbers"):
            exported(tmp_path, ppo, partial(LaneEnv, columns=7))
        with pytest.raises(ExportError, match="--speed-column 9: the policy sees the columns 0 to 4"):
            exported(tmp_path, ppo, speed_column=9)
        few = Rollouts(fresh_observations(9), np.zeros(9, np.int64), None, {})
        with pytest.raises(ExportError, match="at least 256 observations, got 9"):
            export(ppo, Choices("v1.0.0", tmp_path), env=None, recorded=few, progress=lambda *_: None)
        assert list(tmp_path.iterdir()) == []

    def test_version_that_exists_is_not_replaced(self, models: Path, tmp_path: Path) -> None:
        source = load_sb3(models / "ppo" / "model.zip")
        directory = exported(tmp_path, source).directory
        before = (directory / "model_card.yaml").read_bytes()
        with pytest.raises(ExportError, match="exists, and a version never changes"):
            exported(tmp_path, source)
        assert (directory / "model_card.yaml").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["v1.0.0"]

    def test_mistake_in_the_export_cannot_hide(
        self, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = stable_baselines3.make_network

        class Wrong(torch.nn.Module):
            def __init__(self, right: torch.nn.Module) -> None:
                super().__init__()
                self.right = right

            def forward(self, features: torch.Tensor) -> Any:
                mean, log_std = self.right(features)
                return mean + 1e-3, log_std

        monkeypatch.setattr(stable_baselines3, "make_network", lambda *given: Wrong(make(*given)).eval())
        with pytest.raises(ArtifactError, match=r"mean\.acceleration: expected .* does not reproduce its training"):
            exported(tmp_path, load_sb3(models / "ppo" / "model.zip"))
        assert list(tmp_path.iterdir()) == []

    def test_environment_that_does_not_follow_its_seed(self, models: Path, tmp_path: Path) -> None:
        class Moody(LaneEnv):
            def reset(self, **_: Any) -> Any:
                return super().reset(seed=None)

        with pytest.raises(ExportError, match=r"begin differently, .*recorded instead, see --observations"):
            exported(tmp_path, load_sb3(models / "ppo" / "model.zip"), Moody)
        assert list(tmp_path.iterdir()) == []


def test_speed_and_steering_are_taken_from_where_the_policy_has_them(tmp_path: Path) -> None:
    model = train(tmp_path, PPO, ON_POLICY, {}, normalize=True)
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl")
    statistics, rows = model.get_vec_normalize_env(), fresh_observations()
    expected = expected_controls(model, statistics, rows, 1.0)
    for version, speed, steering, order in (("v1.0.0", 4, 2, [4, 2, 0, 1, 3]), ("v1.1.0", None, 1, [1, 0, 2, 3, 4])):
        result = exported(tmp_path, source, version=version, speed_column=speed, steering_column=steering)
        wire = rows[:, order] if speed is not None else np.concatenate([np.full((200, 1), 3.0), rows[:, order]], axis=1)
        loaded = load_artifact(result.directory)
        got = np.array([list(action.values()) for action in served(loaded, wire.astype(np.float32))["actions"]])
        assert np.abs(got - expected).max() <= 1e-6
        assert loaded.policy.card.observation.columns == wire.shape[1]


def test_observation_of_two_dimensions_is_sent_flat(tmp_path: Path) -> None:
    """highway-env's kinematics are a table of vehicles, which VecNormalize keeps in its shape."""

    class Table(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(LaneEnv(columns=6))
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape=(2, 3), dtype=np.float32)

        def observation(self, observation: Any) -> Any:
            return observation.reshape(2, 3)

    model = train(tmp_path, PPO, ON_POLICY, {}, normalize=True, make=Table)
    env = model.get_vec_normalize_env()
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl")
    loaded = load_artifact(exported(tmp_path, source, Table).directory)
    rows = np.concatenate([fresh_observations(), np.zeros((200, 1), np.float32)], axis=1)
    actions = np.stack([model.predict(env.normalize_obs(row.reshape(2, 3)), deterministic=True)[0] for row in rows])
    got = np.array([list(action.values()) for action in served(loaded, rows)["actions"]])
    assert np.abs(got[:, 0] - got[:, 1] - actions[:, 0]).max() <= 1e-6
    assert np.abs(got[:, 2] - actions[:, 1]).max() <= 1e-6


def test_float64_observations_are_rounded_on_the_wire_and_the_user_is_told(tmp_path: Path) -> None:
    class Far(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(LaneEnv())
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape=(5,), dtype=np.float64)

        def observation(self, observation: Any) -> Any:
            return observation.astype(np.float64) + np.pi * 1e3

    train(tmp_path, PPO, ON_POLICY, {}, normalize=True, make=Far)
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl")
    told = [line for line in exported(tmp_path, source, Far).assumptions if "observes float64" in line]
    assert len(told) == 1


def test_false_positives_of_the_ood_check_are_measured_and_strange_observations_found(tmp_path: Path) -> None:
    train(tmp_path, PPO, ON_POLICY, {}, normalize=True)
    source = load_sb3(tmp_path / "model.zip", vecnormalize=tmp_path / "statistics.pkl")
    loaded = load_artifact(exported(tmp_path, source, steps=5_000, episodes=10).directory)
    ood = loaded.policy.card.ood
    assert ood is not None
    assert ood.held_out_rows >= 500
    assert ood.false_positive_rate <= 0.05
    golden = loaded.golden.observations
    flagged = {note["observation"] for note in served(loaded, golden).get("ood", [])}
    assert len(flagged) <= 0.05 * len(golden)
    far = golden[:1].copy()
    far[0, 2] += 30.0
    (note,) = served(loaded, far)["ood"]
    assert note["outside"] == ["sensor_0"]
    assert note["distance"] > note["threshold"]
