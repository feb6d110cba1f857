"""Who drives: a packaged policy in this process. One that is served answers through `served.ServedPilot`."""

from __future__ import annotations

import time
from typing import Protocol

from carla_policy.golden import FloatArray
from carla_policy.policy import Policy
from carla_policy_tools.driving.records import Answer


class Pilot(Protocol):
    """Chooses the controls; what it remembers of an episode ends with it."""

    def begin(self) -> None:
        """A new episode starts."""

    def act(self, row: FloatArray) -> Answer:
        """The controls for the observation `row` `[columns]`."""


class PolicyPilot:
    """What leaves a packaged policy for the vehicle, safety envelope included, always the mode."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._state = policy.initial_state(1)

    def begin(self) -> None:
        self._state = self._policy.initial_state(1)

    def act(self, row: FloatArray) -> Answer:
        started = time.perf_counter()
        policy, rows = self._policy, row[None]
        evaluation = policy.evaluate(rows, policy.preprocessor(rows), self._state)
        decision = policy.decide(policy.select(evaluation.parameters, deterministic=True, seed=0), evaluation)
        self._state = evaluation.next_state
        return Answer(
            decision.controls[0],
            latency_s=time.perf_counter() - started,
            interventions=tuple(intervention.kind for intervention in decision.interventions),
            version=policy.card.version,
        )
