"""stable-baselines3 and sb3-contrib: a saved model, and the statistics of its `VecNormalize`.

Loading a checkpoint runs code that is pickled inside it: export only what you or your team have trained.
"""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import FunctionTransformer

from carla_policy.golden import FloatArray
from carla_policy.normalization import ObservationNormalizer
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.sb3_networks import make_network
from carla_policy_tools.export.source import ActionSpace, Prediction, Source
from carla_policy_tools.export.training_traces import find_trace_of_normalization, normalised_inputs

ALGORITHMS = {
    "ppo": "stable_baselines3",
    "a2c": "stable_baselines3",
    "sac": "stable_baselines3",
    "td3": "stable_baselines3",
    "ddpg": "stable_baselines3",
    "dqn": "stable_baselines3",
    "recurrentppo": "sb3_contrib",
    "trpo": "sb3_contrib",
    "tqc": "sb3_contrib",
    "qrdqn": "sb3_contrib",
}
CLASS_NAMES = {"recurrentppo": "RecurrentPPO"}
OF_POLICY_CLASS = {
    "RecurrentActorCriticPolicy": "recurrentppo",
    "SACPolicy": "sac",
    "TD3Policy": "td3",
    "DQNPolicy": "dqn",
    "TQCPolicy": "tqc",
    "QRDQNPolicy": "qrdqn",
}


@dataclass(frozen=True)
class Sb3Source(Source):
    """Asks the loaded `model`, which sees observations through `statistics`, its `VecNormalize`."""

    model: Any = None
    statistics: Any = None
    settled: bool = True
    """Whether normalisation needs no more guessing: statistics are here, or the user insists that there are none."""

    def check_observations(self, observations: FloatArray) -> None:
        if not self.settled and normalised_inputs(self.model, observations):
            raise _missing_statistics(
                "the checkpoint", "its optimiser saw inputs of unit scale, which these observations are not"
            )

    def features(self, observations: FloatArray) -> FloatArray:
        if self.statistics is None:
            transformed = self.transformer.transform(observations.astype(self.input_dtype))
            return np.asarray(transformed, np.float32)
        return np.asarray(self.statistics.normalize_obs(observations), np.float32)

    def parameters(self, features: FloatArray, state: FloatArray | None) -> dict[str, FloatArray]:
        rows = torch.from_numpy(features[None].reshape(1, *self.model.observation_space.shape))
        with torch.no_grad():
            distribution = self._distribution(rows, state)
        return {name: value[0].detach().numpy() for name, value in distribution.items()}

    def predict(self, observation: FloatArray, state: FloatArray | None) -> Prediction:
        return self._predict(observation, state, deterministic=True)

    def explore(self, observation: FloatArray, state: FloatArray | None) -> FloatArray:
        return self._predict(observation, state, deterministic=False).action

    def bound(self, native: FloatArray) -> FloatArray:
        if self.action.choices:
            return native
        if self.action.bounding == "unscale":
            return np.asarray(self.model.policy.unscale_action(native), np.float32)
        return np.clip(native, self.model.action_space.low, self.model.action_space.high)

    def _predict(self, observation: FloatArray, state: FloatArray | None, *, deterministic: bool) -> Prediction:
        features = self.features(observation[None])[0].reshape(self.model.observation_space.shape)
        if state is None:
            action, _ = self.model.predict(features, deterministic=deterministic)
            return Prediction(np.asarray(action, np.float32).reshape(-1))
        action, after = self.model.predict(
            features, state=self._unflatten(state), episode_start=np.zeros(1), deterministic=deterministic
        )
        return Prediction(np.asarray(action, np.float32).reshape(-1), np.stack(after).astype(np.float32).reshape(-1))

    def _unflatten(self, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Hidden and cell state `[layers, 1, units]` each."""
        hidden, cell = state.reshape(2, *self.model.policy.lstm_hidden_state_shape)
        return hidden, cell

    def _distribution(self, rows: torch.Tensor, state: FloatArray | None) -> dict[str, torch.Tensor]:
        policy = self.model.policy
        match self.head["type"]:
            case "epsilon_greedy":
                values = (
                    policy.quantile_net(rows).mean(dim=1) if hasattr(policy, "quantile_net") else policy.q_net(rows)
                )
                return {"q_values": values}
            case "deterministic":
                return {"action": policy.actor(rows)}
        actor = getattr(policy, "actor", None)
        if actor is not None:
            mean, log_std, extra = actor.get_action_dist_params(rows)
            if not extra:
                return {"mean": mean, "log_std": log_std}
            found = actor.action_dist.proba_distribution(mean, log_std, **extra).distribution
        elif state is None:
            found = policy.get_distribution(rows).distribution
        else:
            states = tuple(torch.from_numpy(part) for part in self._unflatten(state))
            found = policy.get_distribution(rows, states, torch.zeros(1))[0].distribution
        if self.head["type"] == "categorical":
            return {"logits": found.logits}
        if self.head["scale"] == "std":
            return {"mean": found.mean, "std": found.stddev}
        return {"mean": found.mean, "log_std": policy.log_std.expand_as(found.mean)}


def load_sb3(
    path: Path,
    *,
    vecnormalize: Path | None = None,
    preprocessor: Any = None,
    algorithm: str | None = None,
    without_normalization: bool = False,
) -> Sb3Source:
    """The model saved at `path`; `ExportError` where it cannot be served, or where something of it is missing.

    `preprocessor` is a fitted transformer, for a model that was trained on its features. `without_normalization`
    insists that there was neither, whatever the checkpoint looks like.
    """
    if vecnormalize and preprocessor is not None:
        raise ExportError("a model sees observations through VecNormalize or through a preprocessor, not both")
    data = _read_data(path)
    name = _algorithm(path, data, algorithm)
    model = _load_model(path, name)
    space = model.observation_space
    low, high = _flat_bounds(space)
    statistics = _load_statistics(vecnormalize, space.shape) if vecnormalize else None
    insisted = statistics is not None or preprocessor is not None or without_normalization
    if not insisted and (trace := find_trace_of_normalization(path, model)):
        raise _missing_statistics(str(path), trace)
    if statistics is not None:
        _check_statistics_fit(path, model, statistics, vecnormalize)
    head, action = _head_and_action(model)
    lstm = getattr(model.policy, "lstm_hidden_state_shape", None)
    return Sb3Source(
        description=f"{name.upper()} (stable-baselines3), {model.num_timesteps:,} steps",
        versions={
            package: installed_version(package) for package in ("stable-baselines3", "torch", "numpy", "gymnasium")
        },
        head=head,
        action=action,
        low=low,
        high=high,
        transformer=_transformer(statistics) if preprocessor is None else preprocessor,
        input_dtype="float64",
        network=make_network(model, head),
        state_size=2 * int(np.prod(lstm)) if lstm else 0,
        metrics={"training_steps": int(model.num_timesteps)},
        model=model,
        statistics=statistics,
        settled=insisted,
    )


def _read_data(path: Path) -> Mapping[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(json.loads(archive.read("data")))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise ExportError(f"{path}: no model of stable-baselines3; expected what model.save(...) writes") from None


def _algorithm(path: Path, data: Mapping[str, Any], wanted: str | None) -> str:
    """What the checkpoint is, from the policy class and the settings that it names; nothing is unpickled."""
    if wanted is not None:
        name = wanted.lower().replace("-", "").replace("_", "")
        if name not in ALGORITHMS:
            raise ExportError(f"algorithm {wanted!r}: expected one of {', '.join(ALGORITHMS)}")
        return name
    pickled = base64.b64decode(data.get("policy_class", {}).get(":serialized:", ""))
    names = {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
    words = {word for name in names for word in name.split()}
    for policy, name in OF_POLICY_CLASS.items():
        if policy in words:
            return name
    if {"ActorCriticPolicy", "ActorCriticCnnPolicy"} & words:
        return "trpo" if "cg_max_steps" in data else "ppo" if "n_epochs" in data else "a2c"
    raise ExportError(
        f"{path}: its policy class {sorted(words)} tells no algorithm; name it with --algorithm "
        f"({', '.join(ALGORITHMS)})"
    )


def _load_model(path: Path, name: str) -> Any:
    try:
        module = __import__(ALGORITHMS[name])
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'carla-policy-serving[sb3]'") from None
    algorithm = getattr(module, CLASS_NAMES.get(name, name.upper()))
    # What only training needs and other versions cannot always unpickle; and no replay buffer of a million rows.
    replaced = {"learning_rate": 0.0, "lr_schedule": _zero, "clip_range": _zero, "buffer_size": 1}
    try:
        model = algorithm.load(path, device="cpu", custom_objects=replaced)
    except Exception as error:  # whatever a foreign or incompatible checkpoint makes the framework run into
        raise ExportError(f"{path}: does not load as {name.upper()}: {type(error).__name__}: {error}") from None
    model.policy.set_training_mode(False)
    return model


def _zero(_: float) -> float:
    return 0.0


def _flat_bounds(space: Any) -> tuple[FloatArray, FloatArray]:
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or space.dtype not in (np.float32, np.float64):
        raise ExportError(
            f"observation space {space}: expected a Box of floating-point numbers; a policy that sees images or a "
            "dictionary cannot be asked with speed, steering and sensors"
        )
    return _finite_or_infinite(space.low), _finite_or_infinite(space.high)


def _finite_or_infinite(bounds: Any) -> FloatArray:
    flat = np.asarray(bounds, np.float64).reshape(-1)
    return np.where(np.abs(flat) > 1e30, np.sign(flat) * np.inf, flat).astype(np.float32)


def _load_statistics(path: Path, shape: tuple[int, ...]) -> Any:
    from stable_baselines3.common.vec_env import VecNormalize

    try:
        statistics = pickle.loads(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # whatever a broken pickle runs into
        raise ExportError(f"{path}: not what VecNormalize.save(...) writes: {type(error).__name__}: {error}") from None
    if not isinstance(statistics, VecNormalize):
        raise ExportError(f"{path}: expected a saved VecNormalize, got {type(statistics).__name__}")
    if statistics.norm_obs and getattr(statistics.obs_rms, "mean", np.zeros(0)).shape != shape:
        raise ExportError(f"{path}: statistics of other observations than the model's, which have the shape {shape}")
    statistics.training = False
    return statistics


def _transformer(statistics: Any) -> Any:
    if statistics is None or not statistics.norm_obs:
        return FunctionTransformer()
    rms = statistics.obs_rms
    return ObservationNormalizer.of_variance(
        rms.mean.reshape(-1), rms.var.reshape(-1), epsilon=statistics.epsilon, clip=float(statistics.clip_obs)
    )


def _head_and_action(model: Any) -> tuple[dict[str, Any], ActionSpace]:
    from gymnasium.spaces import Box, Discrete

    policy, space = model.policy, model.action_space
    if isinstance(space, Discrete):
        if space.start:
            raise ExportError(f"action space {space}: expected choices that count from 0")
        none = np.zeros(0, np.float32)
        greedy = hasattr(policy, "q_net") or hasattr(policy, "quantile_net")
        head = (
            {"type": "epsilon_greedy", "epsilon": float(model.exploration_rate)} if greedy else {"type": "categorical"}
        )
        return head, ActionSpace(none, none, choices=int(space.n))
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ExportError(f"action space {space}: expected a Box of one dimension, or Discrete")
    actor = getattr(policy, "actor", None)
    bounding = "unscale" if policy.squash_output else "clip"
    if actor is not None and not hasattr(actor, "get_action_dist_params"):
        head = {"type": "deterministic"}
    else:
        kind = "squashed_gaussian" if policy.squash_output else "gaussian"
        uses_sde = getattr(actor if actor is not None else policy, "use_sde", False)
        head = {"type": kind, "scale": "std" if uses_sde else "log_std"}
    return head, ActionSpace(space.low.astype(np.float32), space.high.astype(np.float32), bounding=bounding)


def _missing_statistics(subject: str, trace: str) -> ExportError:
    return ExportError(
        f"{subject} was trained with VecNormalize ({trace}), and without its statistics the policy would see other "
        "observations than in training; pass the file that VecNormalize.save(...) wrote with --vecnormalize, or "
        "--no-vecnormalize if the observations really were not normalised"
    )


def _check_statistics_fit(path: Path, model: Any, statistics: Any, file: Path | None) -> None:
    """The last observation that an on-policy model keeps, normalised by `statistics`, must be what it saw."""
    raw, seen = getattr(model, "_last_original_obs", None), model._last_obs
    if raw is None or seen is None or hasattr(model, "replay_buffer") or not statistics.norm_obs:
        return
    difference = np.abs(statistics.normalize_obs(raw) - seen).max()
    if not difference <= 1.0:
        raise ExportError(
            f"{file}: not the statistics that {path.name} was trained with: its last observation differs by "
            f"{difference:.3g} standard deviations after normalisation; pass those saved together with the model"
        )
