"""stable-baselines3 and sb3-contrib: a saved model, and the statistics of its `VecNormalize`.

Loading a checkpoint runs code that is pickled inside it: export only what you or your team have trained.
"""

from __future__ import annotations

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
from carla_policy_tools.export.sb3_checkpoint import algorithm_of, load_model, load_statistics, read_data
from carla_policy_tools.export.sb3_networks import make_network
from carla_policy_tools.export.source import ActionSpace, Prediction, Source
from carla_policy_tools.export.spaces import flat_bounds
from carla_policy_tools.export.training_traces import (
    check_statistics,
    find_trace_of_normalization,
    missing_statistics,
    normalised_inputs,
)


@dataclass(frozen=True)
class Sb3Source(Source):
    """Asks the loaded `model`, which sees observations through `statistics`, its `VecNormalize`."""

    model: Any = None
    statistics: Any = None
    settled: bool = True
    """Whether normalisation needs no more guessing: statistics are here, or the user insists that there are none."""

    def check_observations(self, observations: FloatArray) -> None:
        if not self.settled and normalised_inputs(self.model, observations):
            raise missing_statistics(
                "the checkpoint", "its optimiser saw inputs of unit scale, which these observations are not"
            )

    def features(self, observations: FloatArray) -> FloatArray:
        if self.statistics is None:
            transformed = self.transformer.transform(observations.astype(self.input_dtype))
            return np.asarray(transformed, np.float32)
        shaped = observations.reshape(-1, *self.model.observation_space.shape)
        return np.asarray(self.statistics.normalize_obs(shaped), np.float32).reshape(len(observations), -1)

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
    data = read_data(path)
    name = algorithm_of(path, data, algorithm)
    model = load_model(path, name)
    space = model.observation_space
    low, high = flat_bounds(space)
    statistics = load_statistics(vecnormalize, space.shape) if vecnormalize else None
    insisted = statistics is not None or preprocessor is not None or without_normalization
    if not insisted and (trace := find_trace_of_normalization(path, model)):
        raise missing_statistics(str(path), trace)
    if statistics is not None and statistics.norm_obs:
        check_statistics(model, statistics)
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
        raise ExportError(
            f"action space {space}: expected a Box of one dimension, or Discrete; "
            "`carla-policy export torch` takes any network"
        )
    actor = getattr(policy, "actor", None)
    bounding = "unscale" if policy.squash_output else "clip"
    if actor is not None and not hasattr(actor, "get_action_dist_params"):
        head = {"type": "deterministic"}
    else:
        kind = "squashed_gaussian" if policy.squash_output else "gaussian"
        uses_sde = getattr(actor if actor is not None else policy, "use_sde", False)
        head = {"type": kind, "scale": "std" if uses_sde else "log_std"}
    return head, ActionSpace(space.low.astype(np.float32), space.high.astype(np.float32), bounding=bounding)
