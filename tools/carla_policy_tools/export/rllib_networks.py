"""The acting part of an `RLModule`, as a network from flat features to the head's parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from carla_policy.golden import FloatArray


class ActingNetwork(torch.nn.Module):
    """The module's own forward pass and distribution, from flat features to the head's parameters.

    RLlib unsquashes a Gaussian's value from -1 to 1 to the action space, and then clips it. That is a Gaussian again,
    of the mean unsquashed and the deviation scaled: with `bounds`, these are what the network yields.
    """

    def __init__(self, module: Any, distribution: Any, head: str, bounds: tuple[FloatArray, FloatArray] | None) -> None:
        super().__init__()
        self.module = _acting_part(copy.deepcopy(module))
        self.distribution, self.head = distribution, head
        self.shape = tuple(module.observation_space.shape)
        self.low: torch.Tensor | None
        self.high: torch.Tensor | None
        low, high = (None, None) if bounds is None else (torch.tensor(bound) for bound in bounds)
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def forward(self, features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        batch = {"obs": features.reshape(-1, *self.shape)}
        values = head_parameters(self.module, self.distribution, self.head, batch)
        if self.low is not None and self.high is not None:
            width = self.high - self.low
            values = (self.low + (values[0] + 1.0) * width / 2.0, values[1] * width / 2.0)
        return values if len(values) > 1 else values[0]


class FreeLogStd(torch.nn.Module):
    """RLlib's `TorchFreeLogStdMLPHead`; the original repeats its scale for as many rows as it was traced with."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.net = head.net
        limit = float(head.log_std_clip_param_const) if head.clip_log_std else np.inf
        self.log_std = torch.nn.Parameter(head.log_std.detach().clamp(-limit, limit))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean = self.net(inputs)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=1)


def head_parameters(module: Any, distribution: Any, head: str, batch: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """The head's parameters for `batch`, as RLlib's own distribution has them."""
    if distribution is None:
        return (module.compute_q_values(batch)["qf_preds"],)
    found = distribution.from_logits(module.forward_inference(batch)["action_dist_inputs"])
    match head:
        case "categorical":
            return (found.logits,)
        case "deterministic":
            return (found.to_deterministic().loc,)
    return found._dist.mean, found._dist.stddev


def _acting_part(module: Any) -> Any:
    """`module` without what only training needs, and without layers that a trace would fix to a number of rows."""
    from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead
    from ray.rllib.core.rl_module.apis import InferenceOnlyAPI

    for name in module.get_non_inference_attributes() if isinstance(module, InferenceOnlyAPI) else ():
        if hasattr(module, name):
            delattr(module, name)
    for name, child in list(module.named_modules()):
        if isinstance(child, TorchFreeLogStdMLPHead):
            module.set_submodule(name, FreeLogStd(child))
    return module
