"""CleanRL's published agents: `ppo_continuous_action`, `ppo`, `sac_continuous_action`, `dqn`, by their state_dict.

A state_dict names its layers, and their shapes give the network back. With the user's own script the agent class of
that script computes the golden vectors; without it, the network here does, which has the published structure.

CleanRL saves neither the bounds of the spaces (an environment or a card gives them) nor, for continuous PPO, the
statistics of its observation normaliser, without which the policy is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import FunctionTransformer

from carla_policy.arrays import load_arrays
from carla_policy.golden import FloatArray
from carla_policy.normalization import ObservationNormalizer
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.imports import import_target
from carla_policy_tools.export.modules import ModuleSource, load_weights, read_weights
from carla_policy_tools.export.source import ActionSpace
from carla_policy_tools.export.spaces import flat_bounds

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
"""Between which CleanRL's SAC maps the tanh of its last layer."""
EPSILON, CLIP = 1e-8, 10.0
"""Of the wrappers NormalizeObservation and TransformObservation in ppo_continuous_action."""
END_EPSILON = 0.05
"""CleanRL's default for DQN's last exploration rate."""


def _stack(weights: Mapping[str, torch.Tensor], prefix: str, activation: type[torch.nn.Module]) -> torch.nn.Sequential:
    """The layers `prefix0`, `prefix2`, ... with an activation between each two."""
    shapes = [tensor.shape for name, tensor in weights.items() if name.startswith(prefix) and name.endswith("weight")]
    layers: list[torch.nn.Module] = []
    for outputs, inputs in shapes:
        layers += [torch.nn.Linear(inputs, outputs), activation()]
    return torch.nn.Sequential(*layers[:-1])


class ContinuousPpo(torch.nn.Module):
    """`actor_mean`, and `actor_logstd` that does not depend on the observation."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.actor_mean = _stack(weights, "actor_mean.", torch.nn.Tanh)
        self.actor_logstd = torch.nn.Parameter(torch.zeros(weights["actor_logstd"].shape))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.actor_mean(features)
        return mean, self.actor_logstd.expand_as(mean)


class DiscretePpo(torch.nn.Module):
    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.actor = _stack(weights, "actor.", torch.nn.Tanh)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.actor(features)
        return logits


class Sac(torch.nn.Module):
    """Two hidden layers, then mean and log_std; the latter mapped into its range by a tanh."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        shapes = [weights[f"{name}.weight"].shape for name in ("fc1", "fc2", "fc_mean", "fc_logstd")]
        self.fc1, self.fc2, self.fc_mean, self.fc_logstd = (torch.nn.Linear(shape[1], shape[0]) for shape in shapes)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(features))))
        share = torch.tanh(self.fc_logstd(hidden))
        return self.fc_mean(hidden), LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (share + 1)


class Dqn(torch.nn.Module):
    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.network = _stack(weights, "network.", torch.nn.ReLU)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.network(features)
        return values


@dataclass(frozen=True)
class Algorithm:
    """How an agent is recognised, rebuilt, and asked in its own script."""

    name: str
    network: Callable[[Mapping[str, torch.Tensor]], torch.nn.Module]
    head: Mapping[str, Any]
    owned: tuple[str, ...]
    """Beginnings of the keys that the acting network consists of."""
    ask: Callable[[Any, torch.Tensor], tuple[torch.Tensor, ...]]


ALGORITHMS = {
    "actor_logstd": Algorithm(
        "ppo_continuous_action",
        ContinuousPpo,
        {"type": "gaussian", "scale": "log_std"},
        ("actor_",),
        lambda agent, x: (agent.actor_mean(x), agent.actor_logstd.expand_as(agent.actor_mean(x))),
    ),
    "fc_logstd.weight": Algorithm(
        "sac_continuous_action",
        Sac,
        {"type": "squashed_gaussian", "scale": "log_std"},
        ("fc",),
        lambda actor, x: actor(x),
    ),
    "actor.0.weight": Algorithm(
        "ppo", DiscretePpo, {"type": "categorical"}, ("actor.",), lambda agent, x: (agent.actor(x),)
    ),
    "network.0.weight": Algorithm(
        "dqn", Dqn, {"type": "epsilon_greedy", "epsilon": END_EPSILON}, ("network.",), lambda net, x: (net(x),)
    ),
}


def load_cleanrl(
    path: Path,
    *,
    agent: str | None,
    normalizer: Path | None,
    without_normalizer: bool,
    env: Callable[[], Environment] | None,
    card: Mapping[str, Any],
) -> ModuleSource:
    """The agent whose state_dict is at `path`; `agent` names its class in the user's script, `file.py:Agent`."""
    weights = read_weights(path)
    weights = weights[0] if isinstance(weights, tuple) else weights
    algorithm = _recognise(path, weights)
    own = {name: value for name, value in weights.items() if name.startswith(algorithm.owned)}
    network = algorithm.network(own)
    load_weights(network, own, str(path))
    network = network.eval()
    columns = next(value.shape[1] for value in own.values() if value.ndim == 2 and len(value) > 1)
    low, high, space = _spaces(algorithm, weights, columns, env, card)
    asked: Any = network if agent is None else _own_agent(agent, weights, low, high, space)
    ask = (lambda rows: network(rows)) if agent is None else (lambda rows: algorithm.ask(asked, rows))
    transformer = _transformer(path, algorithm, normalizer, without_normalizer)
    return ModuleSource(
        description=f"{algorithm.name} (CleanRL)",
        versions={"torch": torch.__version__, "numpy": np.__version__},
        head=dict(algorithm.head),
        action=space,
        low=low,
        high=high,
        transformer=transformer,
        input_dtype="float64",
        network=network,
        forward=lambda features: _as_arrays(ask(torch.from_numpy(features))),
    )


def _as_arrays(outputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[FloatArray, ...]:
    tensors = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    return tuple(tensor.numpy(force=True) for tensor in tensors)


def _recognise(path: Path, weights: Any) -> Algorithm:
    if isinstance(weights, Mapping):
        for key, algorithm in ALGORITHMS.items():
            if key in weights:
                return algorithm
    found = ", ".join(list(weights)[:6]) if isinstance(weights, Mapping) else type(weights).__name__
    names = ", ".join(algorithm.name for algorithm in ALGORITHMS.values())
    raise ExportError(
        f"{path}: not the state_dict of one of CleanRL's agents ({names}); it has {found}. For an agent that you "
        "changed, use `carla-policy export torch`"
    )


def _spaces(
    algorithm: Algorithm,
    weights: Mapping[str, torch.Tensor],
    columns: int,
    env: Callable[[], Environment] | None,
    card: Mapping[str, Any],
) -> tuple[FloatArray, FloatArray, ActionSpace]:
    unbounded = np.full(columns, np.inf, np.float32)
    made = env() if env is not None else None
    low, high = (-unbounded, unbounded) if made is None else flat_bounds(made.env.observation_space)
    none = np.zeros(0, np.float32)
    if algorithm.head["type"] in ("categorical", "epsilon_greedy"):
        last = [value for name, value in weights.items() if name.startswith(algorithm.owned) and value.ndim == 1][-1]
        return low, high, ActionSpace(none, none, choices=len(last))
    bounding = "unscale" if algorithm.name.startswith("sac") else "clip"
    if "action_scale" in weights:
        scale, bias = (weights[name].reshape(-1).numpy() for name in ("action_scale", "action_bias"))
        return low, high, ActionSpace(bias - scale, bias + scale, bounding=bounding)
    given = dict(card.get("action", {}))
    if made is not None:
        return low, high, ActionSpace(made.env.action_space.low, made.env.action_space.high, bounding=bounding)
    if "low" in given and "high" in given:
        bounds = [np.array(given[end], np.float32) for end in ("low", "high")]
        return low, high, ActionSpace(bounds[0], bounds[1], bounding=bounding)
    raise ExportError(
        "CleanRL clips actions to the bounds of the environment, and saves none: name the --env, or pass a --card "
        "with action.low and action.high"
    )


def _own_agent(
    target: str, weights: Mapping[str, torch.Tensor], low: FloatArray, high: FloatArray, space: ActionSpace
) -> torch.nn.Module:
    """The class in the user's script, made as CleanRL makes it: of the vectorised environments' spaces."""
    from gymnasium.spaces import Box, Discrete

    observation = Box(low, high, dtype=np.float32)
    action = Discrete(space.choices) if space.choices else Box(space.low, space.high, dtype=np.float32)
    envs = SimpleNamespace(
        single_observation_space=observation,
        single_action_space=action,
        observation_space=observation,
        action_space=action,
    )
    agent = import_target(target)(envs)
    load_weights(agent, weights, target)
    made: torch.nn.Module = agent.eval()
    return made


def _transformer(path: Path, algorithm: Algorithm, normalizer: Path | None, without: bool) -> Any:
    if normalizer is None:
        if algorithm.name == "ppo_continuous_action" and not without:
            raise ExportError(
                f"{path}: CleanRL's ppo_continuous_action normalises observations and does not save the statistics; "
                "save them at the end of training with np.savez('normalizer.npz', mean=rms.mean, var=rms.var), where "
                "rms is the wrapper's obs_rms, and pass --normalizer, or --no-normalizer if yours had none"
            )
        return FunctionTransformer()
    try:
        found = load_arrays(normalizer)
        mean, variance = (np.asarray(found[key], np.float64).reshape(-1) for key in ("mean", "var"))
    except (ValueError, KeyError) as error:
        raise ExportError(f"{normalizer}: expected an .npz file with mean and var: {error}") from None
    epsilon, clip = float(found.get("epsilon", EPSILON)), float(found.get("clip", CLIP))
    return ObservationNormalizer.of_variance(mean, variance, epsilon=epsilon, clip=clip)
