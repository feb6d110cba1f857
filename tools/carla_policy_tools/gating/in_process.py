"""Who drives in this process: the training framework's own inference, inside the card's layout and envelope."""

from __future__ import annotations

import time

from carla_policy.golden import FloatArray
from carla_policy.policy import Evaluation, Policy
from carla_policy_tools.driving.records import Answer
from carla_policy_tools.export.source import Source


class SourcePilot:
    """The deterministic action of a `source`, brought to controls as `Policy.decide` does it.

    Nothing of the packaged network takes part: `policy` gives its card's action layout, its safety envelope, and what
    is out of distribution. `ValueError` where the source's observation or action is not the card's.
    """

    def __init__(self, source: Source, policy: Policy) -> None:
        card = policy.card
        self._source, self._policy = source, policy
        self._columns = card.preprocessor.columns
        observed = card.observation.columns if self._columns is None else len(self._columns)
        dims = source.action.choices or len(source.action.low)
        wanted = policy.layout.parameter_width
        if source.columns not in (observed, card.observation.columns) or dims != wanted:
            raise ValueError(
                f"the checkpoint observes {source.columns} numbers and acts in {dims} dimensions or choices, "
                f"{card.version} observes {observed} and acts in {wanted}: {card.version} was not exported from it"
            )
        self._state = source.initial_state()

    def begin(self) -> None:
        self._state = self._source.initial_state()

    def act(self, row: FloatArray) -> Answer:
        started = time.perf_counter()
        policy, own = self._policy, row if self._columns is None else row[list(self._columns)]
        prediction = self._source.predict(own, self._state)
        features = self._source.features(own[None])
        novelty = policy.detector(row[None], features) if policy.detector else None
        evaluation = Evaluation(row[None], features, None, {}, prediction.next_state, novelty)
        decision = policy.decide(prediction.action.reshape(1, -1), evaluation)
        self._state = prediction.next_state
        changed = tuple(intervention.kind for intervention in decision.interventions)
        return Answer(decision.controls[0], latency_s=time.perf_counter() - started, interventions=changed)
