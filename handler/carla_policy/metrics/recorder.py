"""Takes down what became of each batch, and gives it back as increments of counters.

A batch costs a few microseconds: numbers are copied into blocks, and summed up later, many at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from carla_policy import episodes
from carla_policy.actions import CONTROLS, TableLayout
from carla_policy.answers import Answer, Outcome
from carla_policy.arrays import every
from carla_policy.batch import STAGES, Batch, Request, error_type
from carla_policy.breaker import CircuitBreaker
from carla_policy.deadline import START_HEADER, queued_s
from carla_policy.errors import RequestError
from carla_policy.golden import FloatArray
from carla_policy.loading import LoadedPolicy
from carla_policy.messages import EpisodeReport
from carla_policy.metrics.buckets import REQUESTS, SECONDS, STAGE_SECONDS, Histogram, bin_counts, bin_labels
from carla_policy.metrics.pile import Pile
from carla_policy.metrics.spread import spread_of
from carla_policy.policy import Decision, Evaluation, Policy

logger = logging.getLogger(__name__)

TIMED_STAGES = (*STAGES, "encode")
FALLBACK_KINDS = frozenset({"fallback", "ood", "deadline", "circuit_open"})
"""Interventions that put the card's safe action in the place of the policy's."""
SELECTIONS = ("deterministic", "stochastic")
MAX_INDICES = 64
"""Rows of an action table that are counted by themselves; the rest counts as `other`."""
MAX_NORM = 1e9


class Sample(NamedTuple):
    """What to add to a counter, or the value of a gauge; `labels` without those that all metrics share."""

    name: str
    labels: tuple[str, ...]
    value: float


def choice_labels(policy: Policy) -> list[str]:
    """The label of each row of the policy's action table; none where it has no table."""
    rows = policy.layout.parameter_width if isinstance(policy.layout, TableLayout) else 0
    return [str(row) if row < MAX_INDICES else "other" for row in range(rows)]


def _is_prediction(request: Request) -> bool:
    """Whether a prediction was asked for, and not a sub-resource."""
    return not request.resource or (bool(request.body) and request.resource != episodes.RESOURCE)


class Recorder:
    """Counts for one loaded policy. `record` and `count_episode` are called by who answers, `take` by who reports."""

    def __init__(self, loaded: LoadedPolicy, breaker: CircuitBreaker) -> None:
        policy = loaded.policy
        self._lock = threading.Lock()
        self._breaker = breaker
        self._counts: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self._request_seconds, self._queue_seconds = Histogram(SECONDS), Histogram(SECONDS)
        self._batch_requests = Histogram(REQUESTS)
        self._stage_seconds = {stage: Histogram(STAGE_SECONDS) for stage in TIMED_STAGES}
        self._spread = spread_of(policy)
        self._timings: Pile[tuple[float, ...]] = Pile(self._sum_up_timings)
        self._queued: Pile[float] = Pile(self._sum_up_queued)
        self._evaluations: Pile[Evaluation] = Pile(self._sum_up_evaluations)
        self._outcomes: dict[bool, Pile[Outcome]] = {
            deterministic: Pile(partial(self._sum_up_actions, SELECTIONS[not deterministic]))
            for deterministic in (True, False)
        }
        self._piles: tuple[Pile[Any], ...] = (
            self._timings,
            self._queued,
            self._evaluations,
            *self._outcomes.values(),
        )
        self._indices = choice_labels(policy)

    def record(self, batch: Batch, answers: Sequence[Answer], encode_ms: float) -> None:
        """Take down `batch`, which was answered with `answers`. Whatever goes wrong is logged: nobody waits for it."""
        try:
            with self._lock:
                self._record(batch, answers, encode_ms)
        except Exception:
            logger.exception("a batch of %d requests is not in the metrics", len(answers))

    def count_episode(self, report: EpisodeReport) -> None:
        """Take down an episode that a client has driven."""
        with self._lock:
            self._counts["policy_episodes_total", ()] += 1
            self._counts["policy_episode_steps_total", ()] += report["length"]
            self._count_signed("policy_episode_return_total", (), report["return"])

    def take(self) -> list[Sample]:
        """What has changed since it was last asked, and the state of the circuit breaker."""
        with self._lock:
            for pile in self._piles:
                pile.flush()
            samples = [Sample(name, labels, value) for (name, labels), value in self._counts.items()]
            self._counts.clear()
            samples += self._taken("policy_request_seconds", (), self._request_seconds)
            samples += self._taken("policy_queue_seconds", (), self._queue_seconds)
            samples += self._taken("policy_batch_requests", (), self._batch_requests)
            for stage, histogram in self._stage_seconds.items():
                samples += self._taken("policy_stage_seconds", (stage,), histogram)
        return [sample for sample in samples if sample.value]

    @property
    def circuit_state(self) -> float:
        """0 closed or off, 1 half open, 2 open."""
        return {"half_open": 1.0, "open": 2.0}.get(self._breaker.state, 0.0)

    def _record(self, batch: Batch, answers: Sequence[Answer], encode_ms: float) -> None:
        predictions = 0
        for request, item, answer in zip(batch.requests, batch.items, answers, strict=True):
            if isinstance(item, Outcome) and answer.status < 400:
                self._outcomes[item.deterministic].add(item, len(item.decision.controls))
            elif isinstance(item, Outcome | RequestError) and _is_prediction(request):
                outcome = "failed" if answer.status >= 500 else "refused"
                self._counts["policy_requests_total", (outcome, error_type(item))] += 1
            else:
                continue
            predictions += 1
            if START_HEADER in request.headers:
                self._queued.add(queued_s(request.headers, time.perf_counter() - batch.started) or 0.0)
        if not predictions:
            return
        for evaluation in batch.evaluations:
            self._evaluations.add(evaluation, len(evaluation))
        stages = [batch.stage_ms.get(stage, math.nan) for stage in STAGES]
        total_ms = (time.perf_counter() - batch.started) * 1e3
        self._timings.add((*stages, encode_ms, total_ms, predictions))

    def _count_signed(self, name: str, labels: tuple[str, ...], value: float) -> None:
        self._counts[name, (*labels, "positive" if value >= 0.0 else "negative")] += abs(value)

    def _sum_up_timings(self, timings: list[tuple[float, ...]]) -> None:
        *stages, total, requests = np.array(timings).T
        for stage, values in zip(TIMED_STAGES, stages, strict=True):
            seconds = values[np.isfinite(values)] / 1e3
            self._stage_seconds[stage].add(seconds, np.ones(len(seconds)))
        self._request_seconds.add(total / 1e3, requests)
        self._batch_requests.add(requests, np.ones(len(requests)))

    def _sum_up_queued(self, seconds: list[float]) -> None:
        self._queue_seconds.add(np.array(seconds), np.ones(len(seconds)))

    def _sum_up_actions(self, selection: str, outcomes: list[Outcome]) -> None:
        controls = np.concatenate([outcome.decision.controls for outcome in outcomes])
        plain, plain_rows = len(outcomes), len(controls)
        for outcome in outcomes:
            if outcome.decision.interventions:
                plain, plain_rows = plain - 1, plain_rows - len(outcome.decision.controls)
                self._count_interventions(outcome.decision)
            if outcome.novelty is not None:
                self._counts["policy_ood_observations_total", ()] += int(outcome.novelty.is_ood.sum())
        self._counts["policy_requests_total", ("ok", "none")] += plain
        self._counts["policy_rows_total", ("policy",)] += plain_rows
        if self._indices:
            self._count_choices([outcome.actions[:, 0] for outcome in outcomes if outcome.actions is not None])
        for column, control in enumerate(CONTROLS):
            values = controls[:, column]
            for label, count in zip(bin_labels(control), bin_counts(control, values), strict=True):
                self._counts["policy_actions_total", (selection, control, label)] += int(count)
            for part in (values.clip(min=0.0), values.clip(max=0.0)):
                total = float(part.sum(dtype=np.float64))
                self._count_signed("policy_action_magnitude_total", (selection, control), total)

    def _count_interventions(self, decision: Decision) -> None:
        changed = {note.observation for note in decision.interventions}
        replaced = {note.observation for note in decision.interventions if note.kind in FALLBACK_KINDS}
        self._counts["policy_requests_total", ("fallback" if replaced else "ok", "none")] += 1
        self._counts["policy_rows_total", ("policy",)] += len(decision.controls) - len(changed)
        self._counts["policy_rows_total", ("adjusted",)] += len(changed) - len(replaced)
        self._counts["policy_rows_total", ("fallback",)] += len(replaced)
        for note in decision.interventions:
            self._counts["policy_interventions_total", (note.kind,)] += 1

    def _count_choices(self, chosen: list[FloatArray]) -> None:
        rows = np.concatenate([*chosen, np.empty(0, np.float32)])
        usable = rows[np.isfinite(rows)].astype(np.int64)
        for label, count in zip(self._indices, np.bincount(usable, minlength=len(self._indices)), strict=True):
            self._counts["policy_action_index_total", (label,)] += int(count)

    def _sum_up_evaluations(self, evaluations: list[Evaluation]) -> None:
        features = np.concatenate([evaluation.features for evaluation in evaluations])
        norms = np.sqrt(np.square(features, dtype=np.float64).sum(axis=1))
        spread = np.empty((len(norms), 0))
        if self._spread:
            names = self._spread.parameters
            spread = self._spread.of(
                {name: np.concatenate([e.parameters[name] for e in evaluations]) for name in names}
            )
        usable = np.isfinite(norms) & np.isfinite(spread).all(axis=1)
        if not every(usable):
            norms, spread = norms[usable], spread[usable]
        self._counts["policy_evaluated_rows_total", ()] += len(norms)
        self._counts["policy_observation_norm_total", ()] += float(norms.clip(max=MAX_NORM).sum())
        if self._spread:
            sums = spread.clip(max=MAX_NORM).sum(axis=0)
            for labels, value in zip(self._spread.labels, sums, strict=True):
                self._counts[self._spread.metric, labels] += float(value)

    @staticmethod
    def _taken(name: str, labels: tuple[str, ...], histogram: Histogram) -> list[Sample]:
        return [
            Sample(f"{name}_{part}", (*labels, le) if part == "bucket" else labels, value)
            for part, le, value in histogram.take()
        ]
