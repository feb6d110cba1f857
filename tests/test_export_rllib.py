"""`carla-policy export rllib`: tiny policies of RLlib, and what its own env runner does with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carla_policy.golden import FloatArray
from carla_policy.policy import Policy
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.export.choices import Choices
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.exporting import export
from carla_policy_tools.export.rllib import RllibSource, load_rllib

ray = pytest.importorskip("ray")
gymnasium = pytest.importorskip("gymnasium")
pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = Path("learner_group", "learner", "rl_module", "default_policy")
LOW, HIGH = np.array([-8.0, -1.0], np.float32), np.array([3.0, 0.5], np.float32)
TABLE = [{"throttle": 0.5, "brake": 0.0, "steer": steer} for steer in (-0.5, 0.0, 0.5)]
STEPS: list[tuple[FloatArray, Any]] = []
"""What `Road` showed, and which action came back."""


class Road(gymnasium.Env):  # type: ignore[misc,name-defined]
    """Four numbers of different scales; the action space is `Box(LOW, HIGH)`, or `choices` of them."""

    def __init__(self, config: Any = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        choices = (config or {}).get("choices", 0)
        self.action_space = gymnasium.spaces.Discrete(choices) if choices else gymnasium.spaces.Box(LOW, HIGH)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        STEPS.append((self.shown, np.array(action)))
        self.steps += 1
        return self._observe(), float(-np.square(action).sum()), False, self.steps == 50, {}

    def _observe(self) -> FloatArray:
        scales, centres = np.array([8.0, 0.3, 1.0, 40.0]), np.array([15.0, 0.0, -2.0, 100.0])
        self.shown: FloatArray = np.asarray(centres + scales * self.np_random.standard_normal(4), np.float32)
        return self.shown


@dataclass(frozen=True)
class Trained:
    algorithm: Any
    path: Path

    def own_steps(self) -> list[tuple[FloatArray, Any]]:
        """Observations and actions of fresh deterministic episodes of RLlib's own env runner."""
        for connector in self.algorithm.env_runner._env_to_module.connectors:
            if hasattr(connector, "_update_stats"):
                connector._update_stats = False
        STEPS.clear()
        self.algorithm.env_runner.sample(num_episodes=4, explore=False, force_reset=True)
        return list(STEPS)


def _config(kind: str) -> Any:
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    class OwnFilter(MeanStdFilter):  # type: ignore[misc]
        """Whatever a user may have written."""

    small: dict[str, Any] = {"fcnet_hiddens": [16, 16]}
    choices = {"choices": 3} if kind in ("discrete", "dqn", "rainbow") else {}
    if kind == "sac":
        config: Any = SACConfig().training(num_steps_sampled_before_learning_starts=32)
    elif kind in ("dqn", "rainbow"):
        atoms = {"num_atoms": 11, "v_min": -50.0, "v_max": 0.0} if kind == "rainbow" else {}
        config = DQNConfig().training(num_steps_sampled_before_learning_starts=32, **atoms)
    else:
        config = PPOConfig().training(train_batch_size=200, minibatch_size=64, num_epochs=2, lr=3e-3)
    variants: dict[str, dict[str, Any]] = {
        "ppo_free": {"free_log_std": True},
        "lstm": {"use_lstm": True, "max_seq_len": 5},
    }
    model = small | variants.get(kind, {})
    runners: dict[str, Any] = {}
    if choices or kind in ("filter", "own"):
        piece = OwnFilter if kind == "own" else MeanStdFilter
        runners["env_to_module_connector"] = lambda env, spaces=None, device=None: piece()  # noqa: ARG005
    config = config.environment(Road, env_config=choices).env_runners(num_env_runners=0, **runners)
    config = config.learners(num_learners=0).rl_module(model_config=model)
    if kind in ("clip", "unbounded"):
        config = config.environment(normalize_actions=False, clip_actions=kind == "clip")
    return config.debugging(seed=3).reporting(min_sample_timesteps_per_iteration=100, min_time_s_per_iteration=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trained]]:
    """Trains a policy of that kind once, for one iteration."""
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    known: dict[str, Trained] = {}

    def train(kind: str) -> Trained:
        if kind not in known:
            algorithm = _config(kind).build_algo()
            if kind not in ("lstm", "own", "unbounded"):
                algorithm.train()
            path = tmp_path_factory.mktemp(kind) / "checkpoint"
            algorithm.save_to_path(str(path))
            known[kind] = Trained(algorithm, path)
        return known[kind]

    yield train
    for policy in known.values():
        policy.algorithm.stop()
    ray.shutdown()


def _export(source: RllibSource, artifacts: Path) -> Policy:
    discrete = source.action.choices > 0
    choices = Choices("v1.0.0", artifacts, steps=600, episodes=4, table=TABLE if discrete else ())
    result = export(
        source,
        choices,
        env=lambda: Environment(Road({"choices": source.action.choices}), "--env Road"),
        recorded=None,
        progress=lambda *_: None,
    )
    deterministic = next(stage for stage in result.parity if stage.stage == "deterministic_actions")
    assert deterministic.bit_equal_share == 1.0
    return load_artifact(artifacts / "v1.0.0").policy


def _served(policy: Policy, observations: FloatArray, *, seed: int | None = None) -> FloatArray:
    evaluation = policy.evaluate(observations, policy.preprocessor(observations), policy.initial_state(1))
    return policy.select(evaluation.parameters, deterministic=seed is None, seed=seed or 0)


@pytest.mark.parametrize(
    ("kind", "head", "bounding"),
    [
        ("ppo", "gaussian", "clip"),
        ("ppo_free", "gaussian", "clip"),
        ("clip", "gaussian", "clip"),
        ("filter", "gaussian", "clip"),
        ("sac", "deterministic", "unscale"),
        ("discrete", "categorical", None),
        ("dqn", "epsilon_greedy", None),
        ("rainbow", "epsilon_greedy", None),
    ],
)
def test_serves_the_actions_that_rllib_s_own_env_runner_takes(
    trained: Callable[[str], Trained],
    tmp_path: Path,
    kind: str,
    head: str,
    bounding: str | None,
) -> None:
    source = load_rllib(trained(kind).path)
    policy = _export(source, tmp_path)
    assert policy.card.head.type == head
    assert getattr(policy.card.action, "bounding", None) == bounding
    steps = trained(kind).own_steps()
    assert len(steps) >= 200
    own = np.stack([np.asarray(action, np.float32).reshape(-1) for _, action in steps])
    served = np.concatenate([_served(policy, observation[None]) for observation, _ in steps])
    assert served.tobytes() == own.tobytes()
    assert len(np.unique(own, axis=0)) > 1


@pytest.mark.parametrize(("kind", "squashed"), [("ppo", False), ("clip", False), ("filter", False), ("sac", True)])
def test_samples_what_rllib_s_distribution_and_unsquashing_make_of_the_same_noise(
    trained: Callable[[str], Trained], tmp_path: Path, kind: str, squashed: bool
) -> None:
    import torch
    from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action

    policy = _export(load_rllib(trained(kind).path, squashed=squashed), tmp_path)
    module = trained(kind).algorithm.get_module()
    space = module.action_space
    treat = clip_action if kind == "clip" else unsquash_action
    assert policy.card.head.type == ("squashed_gaussian" if squashed else "gaussian")
    for seed, (observation, _) in enumerate(trained(kind).own_steps()[:100], start=1):
        features = torch.from_numpy(policy.preprocessor(observation[None]))
        with torch.no_grad():
            logits = module.forward_inference({"obs": features})["action_dist_inputs"]
        mean, log_std = logits.double().chunk(2, dim=1)
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal((1, 2))
        value = mean + (log_std.clamp(-5, 2) if squashed else log_std).exp() * torch.from_numpy(noise)
        own = treat((value.tanh() if squashed else value).numpy(), space)
        np.testing.assert_allclose(_served(policy, observation[None], seed=seed), own, rtol=0, atol=2e-6)


def test_the_deterministic_action_of_a_squashed_export_is_the_squashed_mean(trained: Callable[[str], Trained]) -> None:
    plain, squashed = (load_rllib(trained("sac").path, squashed=choice) for choice in (False, True))
    for observation, own in trained("sac").own_steps()[:50]:
        assert plain.predict(observation, None).action.tobytes() == np.asarray(own, np.float32).tobytes()
        mean = squashed.parameters(squashed.features(observation[None])[0], None)["mean"]
        expected = LOW + (np.tanh(mean.astype(np.float64)) + 1.0) * (HIGH - LOW) / 2.0
        np.testing.assert_allclose(squashed.predict(observation, None).action, expected, rtol=0, atol=2e-6)


def test_a_filter_s_statistics_become_the_preprocessor_and_stay_as_they_are(trained: Callable[[str], Trained]) -> None:
    source = load_rllib(trained("filter").path)
    assert source.env_to_module.connectors[0]._filters[None].running_stats.n >= 200
    observations = np.stack([observation for observation, _ in trained("filter").own_steps()])
    first = source.features(observations)
    assert first.tobytes() == source.transformer.transform(observations.astype("float64")).astype(np.float32).tobytes()
    assert first.tobytes() == source.features(observations).tobytes()
    assert np.abs(first.mean(axis=0)).max() < 0.5


def test_the_card_tells_steps_and_a_dqn_s_exploration_at_its_end(trained: Callable[[str], Trained]) -> None:
    source = load_rllib(trained("dqn").path)
    assert int(source.metrics["training_steps"]) >= 100
    assert 0.05 <= source.head["epsilon"] < 1.0
    assert "DQN" in source.description


def test_an_rl_module_alone_needs_its_algorithm_s_connectors_or_the_word_that_they_were_default(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    inside = load_rllib(trained("filter").path / MODULE)
    assert type(inside.transformer).__name__ == "ObservationNormalizer"
    alone = Path(shutil.copytree(trained("ppo").path / MODULE, tmp_path / "module"))
    with pytest.raises(
        ExportError, match=r"module: an RLModule does not record .* name the checkpoint of its Algorithm"
    ):
        load_rllib(alone)
    source = load_rllib(alone, default_connectors=True)
    for observation, own in trained("ppo").own_steps()[:20]:
        assert source.predict(observation, None).action.tobytes() == np.asarray(own, np.float32).tobytes()
    with pytest.raises(ExportError, match="records its own connectors"):
        load_rllib(trained("ppo").path, default_connectors=True)


def test_paths_that_hold_no_checkpoint_are_refused(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(ExportError, match=rf"{path.name}: no directory; expected what Algorithm.save_to_path"):
            load_rllib(path)
    with pytest.raises(ExportError, match="no RLModule; expected what"):
        load_rllib(tmp_path)
    old = tmp_path / "old"
    (old / "policies").mkdir(parents=True)
    (old / "rllib_checkpoint.json").write_text("{}")
    with pytest.raises(ExportError, match="old API stack"):
        load_rllib(old)
    damaged = Path(shutil.copytree(trained("ppo").path, tmp_path / "damaged"))
    (damaged / MODULE / "module_state.pkl").write_bytes(b"damaged")
    with pytest.raises(ExportError, match="default_policy: does not load: UnpicklingError"):
        load_rllib(damaged)
    shutil.rmtree(damaged / "env_runner")
    with pytest.raises(ExportError, match="does not contain env_runner/env_to_module_connector"):
        load_rllib(damaged)


def test_several_policies_are_refused_by_their_names(trained: Callable[[str], Trained], tmp_path: Path) -> None:
    several = Path(shutil.copytree(trained("ppo").path, tmp_path / "several"))
    shutil.copytree(several / MODULE, several / MODULE.parent / "other")
    with pytest.raises(ExportError, match=r"several: 2 policies \(default_policy, other\); an artifact holds one"):
        load_rllib(several)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lstm", r"a recurrent \(use_lstm\) RLModule"),
        ("own", "trained with the connector OwnFilter, whose part in an action cannot be exported"),
        ("unbounded", "neither normalize_actions nor clip_actions"),
    ],
)
def test_what_no_artifact_can_express_is_refused(trained: Callable[[str], Trained], kind: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_rllib(trained(kind).path)
    with pytest.raises(ExportError, match="--squashed is for a squashed Gaussian"):
        load_rllib(trained("ppo").path, squashed=True)
