"""Modes and seeded samples as anyone can compute them offline: by torch and scipy, not by the serving code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import stats

from carla_policy.golden import FloatArray


def mode(head: Mapping[str, Any], parameters: Mapping[str, FloatArray]) -> FloatArray:
    """The deterministic action `[dims]` of a network that comes without a framework of its own."""
    double = {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in parameters.items()}
    match head["type"]:
        case "deterministic":
            return np.asarray(parameters["action"], np.float32)
        case "gaussian":
            return np.asarray(parameters["mean"], np.float32)
        case "squashed_gaussian":
            return np.asarray(torch.tanh(double["mean"]), np.float32)
        case "beta":
            return np.array(
                [_beta_mode(a, b) for a, b in zip(double["alpha"], double["beta"], strict=True)], np.float32
            )
    (scores,) = double.values()
    return np.array([int(scores.argmax())], np.float32)


def _beta_mode(alpha: torch.Tensor, beta: torch.Tensor) -> float:
    """Torch has it for inner peaks; at the ends, and where both ends are peaks, as Roach decides."""
    if alpha > 1 and beta > 1:
        return float(torch.distributions.Beta(alpha, beta).mode)
    if alpha > 1 or beta > 1:
        return float(alpha > 1)
    return float(torch.distributions.Beta(alpha, beta).mean)


def sample(head: Mapping[str, Any], parameters: Mapping[str, FloatArray], seed: int) -> FloatArray:
    """One draw `[dims]` of the distribution with `parameters` `[width]` each, before it is clipped or unscaled."""
    generator = np.random.Generator(np.random.Philox(seed))
    double = {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in parameters.items()}
    match head["type"]:
        case "deterministic":
            return np.asarray(parameters["action"], np.float32)
        case "gaussian" | "squashed_gaussian":
            std = double["std"] if head.get("scale") == "std" else double["log_std"].exp()
            z = torch.from_numpy(generator.standard_normal((1, len(std)))[0])
            value = torch.addcmul(double["mean"], std, z)
            return np.asarray(torch.tanh(value) if head["type"] == "squashed_gaussian" else value, np.float32)
        case "beta":
            uniform = generator.random((1, len(double["alpha"])))[0]
            return np.asarray(stats.beta.ppf(uniform, double["alpha"].numpy(), double["beta"].numpy()), np.float32)
        case "categorical":
            cumulated = torch.softmax(double["logits"], dim=0).cumsum(0).numpy()
            uniform = generator.random((1, 1))[0, 0]
            choice = min(int(np.searchsorted(cumulated, uniform, side="right")), len(cumulated) - 1)
            return np.array([choice], np.float32)
        case "epsilon_greedy":
            explore, what = generator.random((1, 2))[0]
            values = double["q_values"]
            choice = int(what * len(values)) if explore < head["epsilon"] else int(values.argmax())
            return np.array([choice], np.float32)
    raise ValueError(f"no head of type {head['type']!r}")
