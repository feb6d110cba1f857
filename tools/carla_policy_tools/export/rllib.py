"""RLlib (new API stack): an `Algorithm` checkpoint, or a single `RLModule` of one.

Every action of a source goes through what RLlib itself puts around a module: the env-to-module pipeline, the module,
its distribution, and the module-to-env pipeline, as the checkpoint recorded them. Loading a checkpoint runs code that
is pickled inside it: export only what you or your team have trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from carla_policy.golden import FloatArray
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.rllib_checkpoint import (
    action_treatment,
    default_pipelines,
    find_module,
    load,
    recorded_pipelines,
    steps_of,
    transformer_of,
)
from carla_policy_tools.export.rllib_networks import ActingNetwork, head_parameters
from carla_policy_tools.export.source import ActionSpace, Prediction, Source
from carla_policy_tools.export.spaces import flat_bounds

AFTER_ANY_SCHEDULE = 2**62


@dataclass(frozen=True)
class RllibSource(Source):
    """Asks `module` between its two pipelines of connectors; `distribution` is the class of its actions, if any."""

    module: Any = None
    env_to_module: Any = None
    module_to_env: Any = None
    distribution: Any = None
    unsquashes: bool = False
    """Whether `NormalizeAndClipActions` maps -1 to 1 to the bounds of the action space, and then clips."""
    steps: int = 0

    def features(self, observations: FloatArray) -> FloatArray:
        rows = [self._begin(row, explore=False)[0]["obs"].numpy().reshape(-1) for row in observations]
        return np.stack(rows).astype(np.float32)

    def parameters(self, features: FloatArray, state: FloatArray | None) -> dict[str, FloatArray]:  # noqa: ARG002
        batch = {"obs": torch.from_numpy(features.reshape(1, *self.module.observation_space.shape))}
        with torch.no_grad():
            values = head_parameters(self.module, self.distribution, str(self.head["type"]), batch)
        arrays = [value[0].numpy() for value in values]
        if self._folded:
            low, width = self.action.low, self.action.high - self.action.low
            arrays = [
                low + (arrays[0] + np.float32(1.0)) * width / np.float32(2.0),
                arrays[1] * width / np.float32(2.0),
            ]
        return {name: np.asarray(a, np.float32) for name, a in zip(self.parameter_names, arrays, strict=True)}

    def predict(self, observation: FloatArray, state: FloatArray | None) -> Prediction:  # noqa: ARG002
        batch, context = self._begin(observation, explore=False)
        with torch.no_grad():
            found = self.module.forward_inference(batch)
            if self.head["type"] == "squashed_gaussian":
                mean = self.distribution.from_logits(found["action_dist_inputs"]).loc
                found = {"actions": self.distribution(mean, torch.zeros_like(mean)).sample()}
        return Prediction(self._finish(found, context))

    def explore(self, observation: FloatArray, state: FloatArray | None) -> FloatArray:  # noqa: ARG002
        batch, context = self._begin(observation, explore=True)
        with torch.no_grad():
            found = self.module.forward_exploration(batch, t=self.steps)
        return self._finish(found, context)

    def bound(self, native: FloatArray) -> FloatArray:
        if self.action.choices:
            return native
        from ray.rllib.utils.spaces.space_utils import normalize_action

        drawn = native.astype(np.float64)
        if self._folded:
            drawn = normalize_action(drawn, self.module.action_space)
        _, context = self._begin(np.zeros(self.columns, np.float32), explore=False)
        return self._finish({"actions": torch.from_numpy(drawn[None])}, context)

    @property
    def _folded(self) -> bool:
        """Whether the head's parameters are those of the action in the space's own units, see `ActingNetwork`."""
        return self.unsquashes and self.head["type"] == "gaussian"

    def _begin(self, observation: FloatArray, *, explore: bool) -> tuple[Any, dict[str, Any]]:
        """What the module gets for the raw `observation` `[columns]`, and what both pipelines share."""
        from ray.rllib.env.single_agent_episode import SingleAgentEpisode

        space = self.env_to_module.input_observation_space
        first = observation.reshape(space.shape).astype(space.dtype)
        episode = SingleAgentEpisode(
            observations=[first], observation_space=space, action_space=self.module.action_space
        )
        context = {"rl_module": self.module, "episodes": [episode], "explore": explore, "shared_data": {}}
        return self.env_to_module(batch={}, **context), context

    def _finish(self, found: Mapping[str, Any], context: Mapping[str, Any]) -> FloatArray:
        """The action `[dims]` that the environment gets for what the module has `found`."""
        columns = self.module_to_env(batch=dict(found), **context)
        action = columns["actions_for_env" if "actions_for_env" in columns else "actions"][0]
        return np.asarray(action, np.float32).reshape(-1)


def load_rllib(path: Path, *, default_connectors: bool = False, squashed: bool = False) -> RllibSource:
    """The policy in the checkpoint `path` of an `Algorithm`, or of an `RLModule`; `ExportError` where it is unfit.

    The `RLModule`'s connectors are looked up in the checkpoint that it lies in; `default_connectors` insists that they
    were RLlib's own. RLlib's deterministic action of a squashed Gaussian (SAC) is its mean without the squashing
    (ray-project/ray#51544): the export is a deterministic policy then, for no head samples as that distribution and
    answers so. With `squashed` it is the whole distribution, whose deterministic action is the squashed mean.
    """
    try:
        import ray.rllib.core.distribution.torch.torch_distribution  # noqa: F401 - early versions lack it
        from ray.rllib.core.rl_module.rl_module import RLModule
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed: pip install 'carla-policy-serving[rllib]'") from None
    directory, root = find_module(path, default_connectors=default_connectors)
    module = load(RLModule, directory)
    if module.framework != "torch" or module.is_stateful():
        kind = "recurrent (use_lstm)" if module.framework == "torch" else module.framework
        raise ExportError(f"{path}: a {kind} RLModule; expected one of torch that keeps no state")
    module.cpu().eval()
    env_to_module, module_to_env = default_pipelines(module) if root is None else recorded_pipelines(root)
    low, high = flat_bounds(env_to_module.input_observation_space)
    normalizes, clips = action_treatment(path, module_to_env)
    steps = steps_of(root)
    distribution = _distribution(path, module)
    head, action = _head_and_action(path, module, distribution, normalizes, clips, steps, squashed=squashed)
    bounds = (action.low, action.high) if normalizes and head["type"] == "gaussian" else None
    return RllibSource(
        description=f"{type(module).__name__} (RLlib)" + (f", {steps:,} steps" if steps is not None else ""),
        versions={package: installed_version(package) for package in ("ray", "torch", "numpy", "gymnasium")},
        head=head,
        action=action,
        low=low,
        high=high,
        transformer=transformer_of(path, env_to_module),
        input_dtype="float64",
        network=ActingNetwork(module, distribution, head["type"], bounds).eval(),
        metrics={} if steps is None else {"training_steps": steps},
        module=module,
        env_to_module=env_to_module,
        module_to_env=module_to_env,
        distribution=distribution,
        unsquashes=normalizes,
        steps=steps or 0,
    )


def _distribution(path: Path, module: Any) -> Any:
    """The class of the module's actions in inference, or `None` where it takes the best of its action values."""
    from ray.rllib.core.distribution.torch.torch_distribution import (
        TorchCategorical,
        TorchDiagGaussian,
        TorchSquashedGaussian,
    )

    with torch.no_grad():
        yields = module.forward_inference({"obs": torch.zeros(1, *module.observation_space.shape)})
    if "action_dist_inputs" not in yields or "actions" in yields:
        if hasattr(module, "compute_q_values") and hasattr(module, "epsilon_schedule"):
            return None
        raise ExportError(f"{path}: {type(module).__name__} chooses actions in a way of its own, not by a distribution")
    distribution = module.get_inference_action_dist_cls()
    if distribution not in (TorchCategorical, TorchDiagGaussian, TorchSquashedGaussian):
        raise ExportError(f"{path}: actions of {distribution.__name__}; no head of an artifact is that distribution")
    if module.get_exploration_action_dist_cls() is not distribution:
        raise ExportError(f"{path}: explores with another distribution than the {distribution.__name__} of inference")
    return distribution


def _head_and_action(
    path: Path, module: Any, distribution: Any, normalizes: bool, clips: bool, steps: int | None, *, squashed: bool
) -> tuple[dict[str, Any], ActionSpace]:
    from gymnasium.spaces import Box, Discrete

    space, name = module.action_space, distribution.__name__ if distribution else None
    if squashed and name != "TorchSquashedGaussian":
        raise ExportError(f"{path}: --squashed is for a squashed Gaussian (SAC); this policy is none")
    if isinstance(space, Discrete):
        if space.start:
            raise ExportError(f"action space {space}: expected choices that count from 0")
        none = np.zeros(0, np.float32)
        head: dict[str, Any] = {"type": "categorical"}
        if distribution is None:
            epsilon = module.epsilon_schedule.update(AFTER_ANY_SCHEDULE if steps is None else steps)
            head = {"type": "epsilon_greedy", "epsilon": float(epsilon)}
        return head, ActionSpace(none, none, choices=int(space.n))
    if not isinstance(space, Box) or len(space.shape) != 1 or space.dtype not in (np.float32, np.float64):
        raise ExportError(
            f"action space {space}: expected a Box of one dimension and floating-point numbers, or Discrete"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ExportError(f"action space {space}: expected finite bounds; RLlib does not unsquash or clip without them")
    if not (normalizes or clips):
        raise ExportError(
            f"{path}: was trained with neither normalize_actions nor clip_actions, so that actions left the bounds of "
            "the action space; a served action never does"
        )
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    if name == "TorchDiagGaussian":
        return {"type": "gaussian", "scale": "std"}, ActionSpace(low, high)
    probe = torch.full((1, 2 * len(low)), 0.5)
    mode = distribution.from_logits(probe).to_deterministic().sample()
    if not squashed and torch.equal(mode, probe[:, : len(low)]):
        return {"type": "deterministic"}, ActionSpace(low, high, bounding="unscale" if normalizes else "clip")
    if not normalizes and not ((low == -1.0).all() and (high == 1.0).all()):
        raise ExportError(f"{path}: clips a squashed Gaussian to {space}; an artifact maps it to the bounds instead")
    return {"type": "squashed_gaussian", "scale": "std"}, ActionSpace(low, high, bounding="unscale")
