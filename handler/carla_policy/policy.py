"""`Policy`: one version, ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from carla_policy.actions import ActionLayout
from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy.heads import GaussianHead
from carla_policy.preprocessing import Preprocessor
from carla_policy.runtime import TorchScriptRuntime
from carla_policy.safety import Intervention, SafetyEnvelope


@dataclass(frozen=True)
class Decision:
    """Controls `[rows, 3]` (throttle, brake, steer), and where the safety envelope changed them."""

    controls: FloatArray
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class Policy:
    """Put together by `loading.load_policy`. Stateless: every method depends on its arguments only."""

    card: ModelCard
    preprocessor: Preprocessor
    runtime: TorchScriptRuntime
    head: GaussianHead
    layout: ActionLayout
    safety: SafetyEnvelope

    def act(self, observations: FloatArray, *, deterministic: bool = True, seed: int = 0) -> Decision:
        """Decide for one request of observations `[rows, columns]`; `seed` matters only if not `deterministic`."""
        parameters = self.evaluate(self.preprocessor(observations))
        return self.decide(self.select(parameters, deterministic=deterministic, seed=seed))

    def evaluate(self, features: FloatArray) -> dict[str, FloatArray]:
        """The head's parameters, each `[rows, dims]`, of features `[rows, features]`; rows of any requests together.

        Features that are not finite yield parameters that are not finite, whatever the network makes of them.
        """
        unusable = ~np.isfinite(features).all(axis=1)
        parameters = self.runtime(features)
        if unusable.any():
            for values in parameters.values():
                values[unusable] = np.nan
        return parameters

    def select(self, parameters: Mapping[str, FloatArray], *, deterministic: bool, seed: int) -> FloatArray:
        """The policy's actions `[rows, dims]` for the rows of one request, clipped as in training."""
        raw = self.head.mode(parameters) if deterministic else self.head.sample(parameters, seed)
        return self.layout.clip(raw)

    def decide(self, actions: FloatArray) -> Decision:
        """What leaves for the vehicle: controls of `actions` `[rows, dims]` inside the safety envelope."""
        controls, interventions = self.safety.apply(self.layout.to_controls(actions))
        return Decision(controls, interventions)
