"""Action heads: from the parameters of a distribution to an action, its mode or a seeded sample.

A stochastic answer to one request of `rows` observations is drawn from `Generator(Philox(seed))` in one call for
`[rows, dims]`. So batch mates never matter, a shorter request is a prefix of a longer one, and anyone with the
parameters reproduces an answer offline in three lines of numpy.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from carla_policy.golden import FloatArray

SEED_BITS = 64


class GaussianHead:
    """Diagonal Gaussian with parameters `mean` and `log_std`, as in stable-baselines3's `DiagGaussianDistribution`."""

    parameter_names: ClassVar[tuple[str, ...]] = ("mean", "log_std")

    def mode(self, parameters: Mapping[str, FloatArray]) -> FloatArray:
        """The most likely action of each row, `[rows, dims]`."""
        return parameters["mean"]

    def sample(self, parameters: Mapping[str, FloatArray], seed: int) -> FloatArray:
        """`mean + exp(log_std) * z`, `[rows, dims]`, in float64, rounded once to float32; `z` is standard normal."""
        mean = parameters["mean"].astype(np.float64)
        z = np.random.Generator(np.random.Philox(seed)).standard_normal(mean.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            return (mean + np.exp(parameters["log_std"].astype(np.float64)) * z).astype(np.float32)


def draw_seed() -> int:
    """A fresh seed for a stochastic request that brought none; small enough for a JavaScript client to echo exactly."""
    return secrets.randbits(53)
