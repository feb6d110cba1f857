"""How sure a policy is: the standard deviations of its actions' distribution, or the entropy of its choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from carla_policy.heads import BetaHead, CategoricalHead, Doubles, GaussianHead, Parameters, log_softmax
from carla_policy.policy import Policy


@dataclass(frozen=True)
class Spread:
    """`of` gives `[rows, len(labels)]` for parameters of the head, added to `metric` under each of `labels`.

    Rows that are no distribution are not finite.
    """

    metric: str
    labels: tuple[tuple[str, ...], ...]
    parameters: tuple[str, ...]
    of: Callable[[Parameters], Doubles]


def spread_of(policy: Policy) -> Spread | None:
    """That of the policy's head; `None` for a head without a distribution of its own, such as a deterministic one."""
    dimensions = tuple((name,) for name in policy.layout.names)
    match policy.head:
        case GaussianHead(scale="log_std"):
            return Spread("policy_action_stddev_total", dimensions, ("log_std",), _exponential)
        case GaussianHead(scale=scale):
            return Spread("policy_action_stddev_total", dimensions, (scale,), lambda p: p[scale].astype(np.float64))
        case BetaHead():
            return Spread("policy_action_stddev_total", dimensions, ("alpha", "beta"), _of_beta)
        case CategoricalHead():
            return Spread("policy_entropy_nats_total", ((),), ("logits",), _entropy)
    return None


def _exponential(parameters: Parameters) -> Doubles:
    with np.errstate(over="ignore"):
        std: Doubles = np.exp(parameters["log_std"].astype(np.float64))
    return std


def _of_beta(parameters: Parameters) -> Doubles:
    """`sqrt(ab / ((a + b)^2 (a + b + 1)))`."""
    alpha, beta = parameters["alpha"].astype(np.float64), parameters["beta"].astype(np.float64)
    total = alpha + beta
    with np.errstate(all="ignore"):
        std: Doubles = np.sqrt(alpha * beta / (total**2 * (total + 1.0)))
    return std


def _entropy(parameters: Parameters) -> Doubles:
    """`-sum(p log p)`, in nats, `[rows, 1]`."""
    logs = log_softmax(parameters["logits"])
    with np.errstate(invalid="ignore"):
        entropy: Doubles = -(np.exp(logs) * logs).sum(axis=1, keepdims=True)
    return entropy
