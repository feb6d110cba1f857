"""From the network's outputs to what each request is told: an outcome, or the error that it is answered with.

Most requests of a batch want the distribution's mode. Their actions are chosen, bounded and made fit to drive in one
go over all rows, by operations that treat each row by itself, so the bits are those of a request that came alone.
"""

from __future__ import annotations

import itertools
import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from carla_policy.answers import Outcome, ood_notes
from carla_policy.batch import guarded
from carla_policy.breaker import CircuitBreaker
from carla_policy.errors import OutOfDistribution, OutOfRange, RequestError
from carla_policy.events import describe, tell
from carla_policy.golden import FloatArray
from carla_policy.heads import draw_seed
from carla_policy.policy import Decision, Evaluation, Policy
from carla_policy.prediction import MAX_DETAILS, Prediction, listing
from carla_policy.safety import Intervention

logger = logging.getLogger(__name__)


class Decider:
    """Decides for one policy, and tells its circuit breaker which actions were usable."""

    def __init__(self, policy: Policy, breaker: CircuitBreaker) -> None:
        self._policy = policy
        self._breaker = breaker
        self._rejects_novel = policy.card.ood is not None and policy.card.ood.action == "reject"

    def decide_all(self, predictions: Sequence[Prediction], evaluation: Evaluation) -> Sequence[Outcome | RequestError]:
        """For each of `predictions`, whose rows follow one another in `evaluation`."""
        ends = list(itertools.accumulate([len(prediction.observations) for prediction in predictions]))
        spans = list(map(slice, [0, *ends], ends))
        if all(prediction.is_plain for prediction in predictions) and self._accepts(evaluation):
            try:
                return self._decide_together(predictions, spans, evaluation)
            except Exception as error:
                text = f"deciding for {len(predictions)} requests together failed; trying each by itself"
                tell(logger, logging.ERROR, "deciding_failed", text, error=describe(error, quoting=False))
        return [
            guarded(self.decide, prediction, evaluation.rows(span))
            for prediction, span in zip(predictions, spans, strict=True)
        ]

    def decide(self, prediction: Prediction, evaluation: Evaluation) -> Outcome:
        """For one prediction, of which `evaluation` has the rows; a `RequestError` if they are refused."""
        _refuse_unusable(evaluation)
        self._refuse_novel(evaluation)
        policy, deterministic = self._policy, prediction.deterministic
        seed = draw_seed() if prediction.seed is None else prediction.seed
        chosen = policy.choose(evaluation.parameters, deterministic=deterministic, seed=seed)
        actions = policy.layout.bound(chosen)
        self._record(actions)
        return Outcome(
            decision=policy.decide(actions, evaluation),
            actions=actions,
            deterministic=deterministic,
            seed=seed,
            novelty=evaluation.novelty,
            next_state=evaluation.next_state,
            log_probs=policy.head.log_prob(evaluation.parameters, chosen) if prediction.log_prob else None,
            binary=prediction.binary,
        )

    def _accepts(self, evaluation: Evaluation) -> bool:
        """Whether no row is a reason to refuse a request."""
        novel = self._rejects_novel and evaluation.novelty is not None and evaluation.novelty.is_ood.any()
        return not novel and evaluation.unusable is None

    def _decide_together(
        self, predictions: Sequence[Prediction], spans: Sequence[slice], evaluation: Evaluation
    ) -> list[Outcome]:
        actions = self._policy.select(evaluation.parameters, deterministic=True, seed=0)
        decisions = _shared_out(self._policy.decide(actions, evaluation), spans)
        self._record(actions)
        novelty, after = evaluation.novelty, evaluation.next_state
        noted = novelty if novelty is not None and novelty.is_ood.any() else None
        return [
            Outcome(
                decision=decision,
                actions=actions[span],
                novelty=None if noted is None else noted.rows(span),
                next_state=None if after is None else after[span],
                binary=prediction.binary,
            )
            for prediction, span, decision in zip(predictions, spans, decisions, strict=True)
        ]

    def _record(self, actions: FloatArray) -> None:
        if self._breaker.is_on:
            for row in actions:
                self._breaker.record(failed=not np.isfinite(row).all())

    def _refuse_novel(self, evaluation: Evaluation) -> None:
        novelty = evaluation.novelty
        if novelty is None or not self._rejects_novel or not novelty.is_ood.any():
            return
        notes = ood_notes(novelty, self._policy.card)
        raise listing(
            OutOfDistribution,
            [
                (
                    f"observations[{note['observation']}]",
                    f"unlike training: {', '.join(note['outside']) or 'the combination of its values'} "
                    f"(distance {note['distance']}, threshold {note['threshold']})",
                    "out_of_distribution",
                )
                for note in notes[:MAX_DETAILS]
            ],
            len(notes),
        )


def _shared_out(decision: Decision, spans: Sequence[slice]) -> list[Decision]:
    """The rows of each span, with the interventions in them counted from its own first row."""
    controls, interventions = decision
    if not interventions:
        return [Decision(controls[span]) for span in spans]
    starts = [span.start for span in spans]
    own: list[list[Intervention]] = [[] for _ in spans]
    for note in interventions:
        index = bisect_right(starts, note.observation) - 1
        own[index].append(replace(note, observation=note.observation - starts[index]))
    return [Decision(controls[span], tuple(notes)) for span, notes in zip(spans, own, strict=True)]


def _refuse_unusable(evaluation: Evaluation) -> None:
    """Observations within the card's bounds that the preprocessor makes infinities of."""
    if evaluation.unusable is not None and evaluation.unusable.any():
        rows = np.flatnonzero(evaluation.unusable)
        message = "its features are not finite after preprocessing; the card's bounds are too wide for this value"
        findings = [(f"observations[{row}]", message, "not_finite") for row in rows[:MAX_DETAILS]]
        raise listing(OutOfRange, findings, len(rows))
