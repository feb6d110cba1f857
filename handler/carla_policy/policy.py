"""`Policy`: one version, ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from carla_policy.actions import ActionLayout
from carla_policy.arrays import every
from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy.heads import Head
from carla_policy.ood import Novelty, NoveltyDetector
from carla_policy.preprocessing import Preprocessor
from carla_policy.runtimes.tiling import NEXT_STATE, Runtime
from carla_policy.safety import Intervention, Mask, SafetyEnvelope


@dataclass(slots=True)
class Evaluation:
    """What a policy makes of observations before it chooses an action; the arrays' first axis are the rows.

    `features` are what the network saw; `unusable` says whose are not finite, where any are. `next_state` is there for
    recurrent policies, `novelty` where the card declares what is out of distribution.
    """

    observations: FloatArray
    features: FloatArray
    unusable: Mask | None
    parameters: Mapping[str, FloatArray]
    next_state: FloatArray | None
    novelty: Novelty | None

    def __len__(self) -> int:
        return len(self.observations)

    def rows(self, rows: slice | Mask) -> Evaluation:
        return Evaluation(
            self.observations[rows],
            self.features[rows],
            None if self.unusable is None else self.unusable[rows],
            {name: values[rows] for name, values in self.parameters.items()},
            None if self.next_state is None else self.next_state[rows],
            None if self.novelty is None else self.novelty.rows(rows),
        )


class Decision(NamedTuple):
    """Controls `[rows, 3]` (throttle, brake, steer), and where the safety envelope changed them."""

    controls: FloatArray
    interventions: tuple[Intervention, ...] = ()


@dataclass(frozen=True)
class Policy:
    """Put together by `loading.load_policy`. Stateless: every method depends on its arguments only."""

    card: ModelCard
    preprocessor: Preprocessor
    runtime: Runtime
    head: Head
    layout: ActionLayout
    safety: SafetyEnvelope
    detector: NoveltyDetector | None = None

    def act(
        self, observations: FloatArray, *, deterministic: bool = True, seed: int = 0, state: FloatArray | None = None
    ) -> Decision:
        """Decide for one request of observations `[rows, columns]`; `seed` matters only if not `deterministic`.

        A recurrent policy takes `state` `[rows, state_size]`; none is the start of an episode.
        """
        evaluation = self.evaluate(observations, self.preprocessor(observations), state)
        return self.decide(self.select(evaluation.parameters, deterministic=deterministic, seed=seed), evaluation)

    def initial_state(self, rows: int) -> FloatArray | None:
        """The state at the start of an episode, zeros `[rows, state_size]`; `None` where the policy keeps none."""
        recurrent = self.card.recurrent
        return np.zeros((rows, recurrent.state_size), np.float32) if recurrent else None

    def evaluate(self, observations: FloatArray, features: FloatArray, state: FloatArray | None = None) -> Evaluation:
        """The head's parameters, the next state and the novelty of each row; rows of any requests together.

        Features that are not finite yield parameters that are not finite, whatever the network makes of them, and
        a state that is not finite starts the episode anew.
        """
        finite = np.isfinite(features)
        unusable = None if every(finite) else np.asarray(~finite.all(axis=1))
        before = self.initial_state(len(features)) if state is None else state
        outputs = self.runtime(features) if before is None else self.runtime(features, before)
        after = None if before is None else outputs.pop(NEXT_STATE)
        if unusable is not None:
            nan = np.float32(np.nan)
            outputs = {name: np.where(unusable[:, None], nan, values) for name, values in outputs.items()}
        if after is not None:
            lost = np.asarray(~np.isfinite(after).all(axis=1))
            anew = lost if unusable is None else lost | unusable
            after = np.where(anew[:, None], np.float32(0.0), after)
        novelty = self.detector(observations, features) if self.detector else None
        return Evaluation(observations, features, unusable, outputs, after, novelty)

    def select(self, parameters: Mapping[str, FloatArray], *, deterministic: bool, seed: int) -> FloatArray:
        """The policy's actions `[rows, dims]` for the rows of one request, within its bounds as in training."""
        return self.layout.bound(self.choose(parameters, deterministic=deterministic, seed=seed))

    def choose(self, parameters: Mapping[str, FloatArray], *, deterministic: bool, seed: int) -> FloatArray:
        """The head's own actions `[rows, dims]`, before they are clipped or unscaled."""
        return self.head.mode(parameters) if deterministic else self.head.sample(parameters, seed)

    def decide(self, actions: FloatArray, evaluation: Evaluation) -> Decision:
        """What leaves for the vehicle: controls of `actions` `[rows, dims]` inside the safety envelope."""
        forced: dict[str, Mask] | None = None
        if evaluation.novelty and self.card.ood and self.card.ood.action == "fallback":
            forced = {"ood": evaluation.novelty.is_ood}
        return Decision(*self.safety.apply(self.layout.to_controls(actions), evaluation.observations, forced))

    def fall_back(self, observations: FloatArray, kind: str) -> Decision:
        """The fallback action for every row of `observations` `[rows, columns]`, without asking the network."""
        controls = np.broadcast_to(self.safety.fallback, (len(observations), 3))
        everywhere = np.ones(len(observations), np.bool_)
        return Decision(*self.safety.apply(controls, observations, {kind: everywhere}))
