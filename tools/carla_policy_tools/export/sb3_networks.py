"""The part of a stable-baselines3 policy that acts, as a network from features to the head's parameters.

Each is made of the trained modules themselves, in the order in which the policy calls them; what only training
needs (critics, optimisers) stays behind. Features come flat and get the shape of the observation space here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from carla_policy_tools.export.errors import ExportError

Tensors = tuple[torch.Tensor, ...]


def make_network(model: Any, head: Mapping[str, Any]) -> torch.nn.Module:
    """The network of `model`'s policy for an artifact with `head`."""
    policy, shape = model.policy, tuple(model.observation_space.shape)
    network: torch.nn.Module
    if head["type"] == "epsilon_greedy":
        network = ValueNetwork(policy, shape)
    elif getattr(policy, "actor", None) is not None:
        network = ActorNetwork(policy.actor, shape, head)
    elif hasattr(policy, "lstm_actor"):
        network = RecurrentActorCriticNetwork(policy, shape, head)
    elif hasattr(policy, "mlp_extractor"):
        network = ActorCriticNetwork(policy, shape, head)
    else:
        raise ExportError(f"{type(policy).__name__}: a policy of unknown structure; use `carla-policy export torch`")
    return network.eval()


class ValueNetwork(torch.nn.Module):
    """Action values of DQN, or the mean of QR-DQN's quantiles."""

    def __init__(self, policy: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        net = policy.quantile_net if hasattr(policy, "quantile_net") else policy.q_net
        self.shape = shape
        self.quantiles = getattr(net, "n_quantiles", 0)
        self.extractor = net.features_extractor
        self.values = net.quantile_net if self.quantiles else net.q_net

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.values(self.extractor(features.reshape(-1, *self.shape)))
        return values.reshape(features.shape[0], self.quantiles, -1).mean(dim=1) if self.quantiles else values


class ActorNetwork(torch.nn.Module):
    """The actor of SAC and TQC (mean and scale), or of TD3 and DDPG (the action)."""

    def __init__(self, actor: Any, shape: tuple[int, ...], head: Mapping[str, Any]) -> None:
        super().__init__()
        self.shape = shape
        self.extractor = actor.features_extractor
        self.mu = actor.mu
        self.deterministic = head["type"] == "deterministic"
        if not self.deterministic:
            self.latent = actor.latent_pi
            self.scale = _scale(actor, head)

    def forward(self, features: torch.Tensor) -> torch.Tensor | Tensors:
        seen = self.extractor(features.reshape(-1, *self.shape))
        if self.deterministic:
            action: torch.Tensor = self.mu(seen)
            return action
        latent = self.latent(seen)
        mean = self.mu(latent)
        return mean, self.scale(latent, mean)


class ActorCriticNetwork(torch.nn.Module):
    """The actor of PPO, A2C and TRPO: `logits`, or mean and scale."""

    def __init__(self, policy: Any, shape: tuple[int, ...], head: Mapping[str, Any]) -> None:
        super().__init__()
        self.shape = shape
        shared = policy.share_features_extractor
        self.extractor = policy.features_extractor if shared else policy.pi_features_extractor
        self.hidden = policy.mlp_extractor.policy_net
        self.action = policy.action_net
        self.categorical = head["type"] == "categorical"
        self.scale = None if self.categorical else _scale(policy, head)

    def forward(self, features: torch.Tensor) -> torch.Tensor | Tensors:
        return self.act(self.hidden(self.extractor(features.reshape(-1, *self.shape))))

    def act(self, latent: torch.Tensor) -> torch.Tensor | Tensors:
        """The parameters for the last hidden layer's output `[rows, units]`."""
        output: torch.Tensor = self.action(latent)
        if self.scale is None:
            return output - output.logsumexp(dim=-1, keepdim=True)
        return output, self.scale(latent, output)


class RecurrentActorCriticNetwork(ActorCriticNetwork):
    """RecurrentPPO's actor: also takes and yields the LSTM's hidden and cell state, `[rows, 2 * layers * units]`."""

    def __init__(self, policy: Any, shape: tuple[int, ...], head: Mapping[str, Any]) -> None:
        super().__init__(policy, shape, head)
        self.lstm = policy.lstm_actor

    def forward(self, features: torch.Tensor, state: torch.Tensor) -> Tensors:  # type: ignore[override]
        rows = features.shape[0]
        both = state.reshape(rows, 2, self.lstm.num_layers, self.lstm.hidden_size).permute(1, 2, 0, 3).contiguous()
        seen = self.extractor(features.reshape(-1, *self.shape))
        output, (hidden, cell) = self.lstm(seen.unsqueeze(0), (both[0], both[1]))
        parameters = self.act(self.hidden(output.squeeze(0)))
        after = torch.stack([hidden, cell]).permute(2, 0, 1, 3).reshape(rows, -1)
        return (*(parameters if isinstance(parameters, tuple) else (parameters,)), after)


def _scale(owner: Any, head: Mapping[str, Any]) -> torch.nn.Module:
    if head["scale"] == "std":
        return StateDependentStd(owner)
    if isinstance(owner.log_std, torch.nn.Module):
        return ClampedLogStd(owner)
    return ConstantLogStd(owner)


class ConstantLogStd(torch.nn.Module):
    """PPO's: one trained number for each dimension, whatever is observed."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.log_std = policy.log_std

    def forward(self, latent: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        expanded: torch.Tensor = self.log_std.expand_as(mean)
        return expanded


class ClampedLogStd(torch.nn.Module):
    """SAC's: a layer of its own, clamped to the limits of stable-baselines3's `sac.policies`."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN

        self.layer = actor.log_std
        self.low, self.high = LOG_STD_MIN, LOG_STD_MAX

    def forward(self, latent: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.clamp(self.layer(latent), self.low, self.high)


class StateDependentStd(torch.nn.Module):
    """gSDE's: `sqrt(latent² · std² + epsilon)`, the marginal over its exploration matrix.

    Source: stable-baselines3's `StateDependentNoiseDistribution`, after Raffin et al., "Smooth Exploration for
    Robotic Reinforcement Learning".
    """

    def __init__(self, owner: Any) -> None:
        super().__init__()
        with torch.no_grad():
            variance = owner.action_dist.get_std(owner.log_std) ** 2
        self.variance: torch.Tensor
        self.register_buffer("variance", variance.clone())
        self.epsilon = owner.action_dist.epsilon

    def forward(self, latent: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.sqrt(torch.mm(latent**2, self.variance) + self.epsilon)
