"""Action heads: from the parameters that a network yields to an action, its mode or a seeded sample.

A stochastic answer to one request of `rows` observations is drawn from `Generator(Philox(seed))` in one call for
`[rows, draws]`. So batch mates never matter, a shorter request is a prefix of a longer one, and anyone with the
parameters reproduces an answer offline in a few lines of numpy.

Heads compute in float64 and round once to float32. A row whose parameters make no distribution (not finite, a scale
that is not positive) becomes NaN, which the safety envelope answers with the fallback action.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import every
from carla_policy.golden import FloatArray
from carla_policy.specs import (
    BetaSpec,
    CategoricalSpec,
    DeterministicSpec,
    EpsilonGreedySpec,
    GaussianSpec,
    SquashedGaussianSpec,
)

SEED_BITS = 64
Parameters = Mapping[str, FloatArray]
Doubles = NDArray[np.float64]
LOG_2PI = float(np.log(2 * np.pi))
FAR_FROM_OVERFLOW = np.float32(700.0)
"""Up to here the exponential of a number and of its negative are float64 numbers above 0."""


class Head(Protocol):
    """One kind of distribution over actions. `dims` is the action's width, 1 for a choice from a table."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """What the network yields, in this order."""

    @property
    def native_range(self) -> tuple[float, float] | None:
        """Range of the head's own actions where it is bounded by construction."""

    def mode(self, parameters: Parameters) -> FloatArray:
        """The action of a deterministic answer for each row, `[rows, dims]`, before bounding."""

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """A seeded draw for each row, `[rows, dims]`, before bounding."""

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        """Log-density, or log-probability of a choice, of `actions` `[rows, dims]` before bounding: `[rows]`."""


@dataclass(frozen=True)
class DeterministicHead:
    """A point: the network's output is the action, and a sample of it is the same."""

    parameter_names: tuple[str, ...] = ("action",)
    native_range: tuple[float, float] | None = (-1.0, 1.0)

    def mode(self, parameters: Parameters) -> FloatArray:
        return parameters["action"]

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:  # noqa: ARG002 - a point leaves no choice
        return parameters["action"]

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        same: NDArray[np.bool_] = (parameters["action"] == actions).all(axis=1)
        return np.where(same, 0.0, -np.inf)


@dataclass(frozen=True)
class GaussianHead:
    """Diagonal Gaussian, as stable-baselines3's `DiagGaussianDistribution`; its scale is `log_std` or `std`."""

    scale: str = "log_std"
    native_range: tuple[float, float] | None = None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return ("mean", self.scale)

    def mode(self, parameters: Parameters) -> FloatArray:
        if self._is_surely_valid(parameters):
            return parameters["mean"]
        mean, _ = self._moments(parameters)
        return mean.astype(np.float32)

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """`mean + std * z`; `z` is standard normal."""
        return _rounded(self._draw(parameters, seed))

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        return self._density(parameters, actions.astype(np.float64))

    def _draw(self, parameters: Parameters, seed: int) -> Doubles:
        mean, std = self._moments(parameters)
        with np.errstate(over="ignore", invalid="ignore"):
            return mean + std * _generator(seed).standard_normal(mean.shape)

    def _density(self, parameters: Parameters, values: Doubles) -> Doubles:
        mean, std = self._moments(parameters)
        with np.errstate(all="ignore"):
            each = -0.5 * ((values - mean) / std) ** 2 - np.log(std) - 0.5 * LOG_2PI
        total: Doubles = each.sum(axis=1)
        return total

    def _is_surely_valid(self, parameters: Parameters) -> bool:
        """Whether `_moments` would find nothing at fault, told in fewer steps; False if they have to be looked at."""
        scale = parameters[self.scale]
        sound = (np.abs(scale) < FAR_FROM_OVERFLOW) if self.scale == "log_std" else (scale > 0.0) & (scale < np.inf)
        return bool(every(np.isfinite(parameters["mean"])) and every(sound))

    def _moments(self, parameters: Parameters) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation, `[rows, dims]`; rows that are no distribution are NaN."""
        mean, std = parameters["mean"].astype(np.float64), parameters[self.scale].astype(np.float64)
        if self.scale == "log_std":
            with np.errstate(over="ignore"):
                std = np.exp(std)
        return _only_valid(np.isfinite(mean) & np.isfinite(std) & (std > 0.0), mean, std)


@dataclass(frozen=True)
class SquashedGaussianHead(GaussianHead):
    """`tanh` of a diagonal Gaussian, as stable-baselines3's `SquashedDiagGaussianDistribution`; within (-1, 1)."""

    native_range: tuple[float, float] | None = (-1.0, 1.0)

    def mode(self, parameters: Parameters) -> FloatArray:
        """`tanh(mean)`: SAC's deterministic action, the mode before squashing."""
        mean = super().mode(parameters).astype(np.float64)
        return np.tanh(mean).astype(np.float32)

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """`tanh(mean + std * z)`."""
        return _rounded(np.tanh(self._draw(parameters, seed)))

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        """Change of variables; an action that float32 rounded to -1 or 1 counts as the last number before it."""
        inside = float(np.nextafter(np.float32(1.0), np.float32(0.0)))
        values = np.arctanh(np.clip(actions.astype(np.float64), -inside, inside))
        correction = 2.0 * (np.log(2.0) - values - np.logaddexp(0.0, -2.0 * values))
        total: Doubles = self._density(parameters, values) - correction.sum(axis=1)
        return total


@dataclass(frozen=True)
class BetaHead:
    """Independent Beta distributions over (0, 1), as Roach and its descendants use for driving."""

    parameter_names: tuple[str, ...] = ("alpha", "beta")
    native_range: tuple[float, float] | None = (0.0, 1.0)

    def mode(self, parameters: Parameters) -> FloatArray:
        """`(a - 1) / (a + b - 2)` for one inner peak, 0 or 1 where one shape alone exceeds 1, else the mean."""
        alpha, beta = self._shapes(parameters)
        with np.errstate(all="ignore"):
            inner = (alpha - 1.0) / (alpha + beta - 2.0)
            mean = alpha / (alpha + beta)
        rising, falling = alpha > 1.0, beta > 1.0
        mode = np.select([rising & falling, falling, rising], [inner, 0.0, 1.0], default=mean)
        mode[np.isnan(mean)] = np.nan
        return _rounded(mode)

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """The inverse of the distribution function at uniform numbers."""
        from scipy.special import betaincinv

        alpha, beta = self._shapes(parameters)
        return _rounded(betaincinv(alpha, beta, _generator(seed).random(alpha.shape)))

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        from scipy.special import betaln, xlog1py, xlogy

        alpha, beta = self._shapes(parameters)
        values = actions.astype(np.float64)
        with np.errstate(all="ignore"):
            each = xlogy(alpha - 1.0, values) + xlog1py(beta - 1.0, -values) - betaln(alpha, beta)
        total: Doubles = each.sum(axis=1)
        return total

    def _shapes(self, parameters: Parameters) -> tuple[Doubles, Doubles]:
        alpha, beta = (parameters[name].astype(np.float64) for name in self.parameter_names)
        return _only_valid(np.isfinite(alpha) & np.isfinite(beta) & (alpha > 0.0) & (beta > 0.0), alpha, beta)


@dataclass(frozen=True)
class CategoricalHead:
    """A choice from a table, as torch's `Categorical` of `logits` `[rows, choices]`; the action is its row number."""

    parameter_names: tuple[str, ...] = ("logits",)
    native_range: tuple[float, float] | None = None

    def mode(self, parameters: Parameters) -> FloatArray:
        return _best(parameters["logits"])

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """The first choice at which the cumulated probability exceeds a uniform number."""
        logits = parameters["logits"]
        cumulated = np.cumsum(np.exp(log_softmax(logits)), axis=1)
        uniform = _generator(seed).random((len(logits), 1))
        choice = np.minimum((cumulated <= uniform).sum(axis=1), logits.shape[1] - 1)
        return _chosen(choice, logits)

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        logits = parameters["logits"]
        return _of_choice(log_softmax(logits), actions)


@dataclass(frozen=True)
class EpsilonGreedyHead:
    """The best of `q_values` `[rows, choices]`; of samples, a share of `epsilon` takes any choice, as in DQN."""

    epsilon: float
    parameter_names: tuple[str, ...] = ("q_values",)
    native_range: tuple[float, float] | None = None

    def mode(self, parameters: Parameters) -> FloatArray:
        return _best(parameters["q_values"])

    def sample(self, parameters: Parameters, seed: int) -> FloatArray:
        """Two uniform numbers a row: whether to explore, and what."""
        values = parameters["q_values"]
        explore, what = _generator(seed).random((len(values), 2)).T
        random_choice = (what * values.shape[1]).astype(np.int64)
        return _chosen(np.where(explore < self.epsilon, random_choice, values.argmax(axis=1)), values)

    def log_prob(self, parameters: Parameters, actions: FloatArray) -> Doubles:
        values = parameters["q_values"]
        best = np.arange(values.shape[1]) == values.argmax(axis=1)[:, None]
        with np.errstate(divide="ignore"):
            each = np.log(self.epsilon / values.shape[1] + (1.0 - self.epsilon) * best)
        each[~np.isfinite(values).all(axis=1)] = np.nan
        return _of_choice(each, actions)


def make_head(
    spec: DeterministicSpec | GaussianSpec | SquashedGaussianSpec | BetaSpec | CategoricalSpec | EpsilonGreedySpec,
) -> Head:
    """The head that a card declares."""
    match spec:
        case DeterministicSpec():
            return DeterministicHead()
        case GaussianSpec(scale=scale):
            return GaussianHead(scale)
        case SquashedGaussianSpec(scale=scale):
            return SquashedGaussianHead(scale)
        case BetaSpec():
            return BetaHead()
        case CategoricalSpec():
            return CategoricalHead()
        case EpsilonGreedySpec(epsilon=epsilon):
            return EpsilonGreedyHead(epsilon)


def draw_seed() -> int:
    """A fresh seed for a stochastic request that brought none; small enough for a JavaScript client to echo exactly."""
    return secrets.randbits(53)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def _rounded(values: Doubles) -> FloatArray:
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _only_valid(valid: NDArray[np.bool_], first: Doubles, second: Doubles) -> tuple[Doubles, Doubles]:
    if not valid.all():
        invalid = ~valid.all(axis=1)
        first[invalid] = second[invalid] = np.nan
    return first, second


def log_softmax(logits: FloatArray) -> Doubles:
    """Log-probabilities of the choices that `logits` `[rows, choices]` stand for."""
    values = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        values = values - values.max(axis=1, keepdims=True)
        result: Doubles = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return result


def _best(scores: FloatArray) -> FloatArray:
    return _chosen(scores.argmax(axis=1), scores)


def _chosen(choice: NDArray[np.int64], scores: FloatArray) -> FloatArray:
    """`choice` `[rows]` as an action `[rows, 1]`, NaN where the scores are not finite."""
    return np.where(np.isfinite(scores).all(axis=1), choice, np.nan).astype(np.float32)[:, None]


def _of_choice(log_probabilities: Doubles, actions: FloatArray) -> Doubles:
    """That of each row's choice `[rows, 1]`, NaN where there was none."""
    chosen = np.isfinite(actions[:, 0])
    choice = np.where(chosen, actions[:, 0], 0).astype(np.int64)
    return np.where(chosen, log_probabilities[np.arange(len(choice)), choice], np.nan)
