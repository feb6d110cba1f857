"""What a worker tells of the requests that it answers: failures, interventions, OOD, and now and then a plain one.

A plain answer costs next to nothing. What happens often is told at a bounded rate, and how much was not told is told
later, with the next requests. Nothing of a request's body is: of an error its status, its type and the kinds of its
findings, which are the service's own words.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from carla_policy.answers import Answer, Outcome
from carla_policy.batch import Batch, Request
from carla_policy.deadline import queued_s
from carla_policy.errors import RequestError
from carla_policy.events import REQUESTS_LOGGER, Allowance, describe, tell
from carla_policy.trace_context import echoed_id, trace_id
from carla_policy.tracing import Trace

ACCESS_VARIABLE = "CARLA_POLICY_ACCESS_EVENTS_PER_S"
DEFAULT_ACCESS_PER_S, MAX_ACCESS_PER_S = 1.0, 1_000.0
SUMMARY_INTERVAL_S = 1.0
MAX_KINDS = 5

logger = logging.getLogger(REQUESTS_LOGGER)


def access_rate() -> float:
    """Access events a second for each worker, as the environment asks; the default where it says nothing usable."""
    try:
        rate = float(os.environ.get(ACCESS_VARIABLE, DEFAULT_ACCESS_PER_S))
    except ValueError:
        return DEFAULT_ACCESS_PER_S
    return min(rate, MAX_ACCESS_PER_S) if rate >= 0.0 else DEFAULT_ACCESS_PER_S


class RequestEvents:
    """The requests of one worker. Call `note` once for each batch."""

    def __init__(self, access_per_s: float = DEFAULT_ACCESS_PER_S, clock: Callable[[], float] = time.perf_counter):
        """`clock` is that of `Batch.started`."""
        self._clock = clock
        self._access_interval_s = 1.0 / access_per_s if access_per_s else math.inf
        self._next_access = -math.inf if access_per_s else math.inf
        self._next_summary = -math.inf
        self._next = -math.inf
        self._answered = 0
        self._allowed = {
            "failed": Allowance(per_s=20.0, burst=100),
            "refused": Allowance(per_s=1.0, burst=10),
            "intervention": Allowance(per_s=1.0, burst=3),
            "out_of_distribution": Allowance(per_s=1.0, burst=3),
        }
        self._interventions: Counter[str] = Counter()
        self._novel = 0

    def note(self, batch: Batch, answers: Sequence[Answer], traces: Sequence[Trace] = ()) -> None:
        """Tell what is worth it of `answers` to the requests of `batch`, of which there are `traces` or none.

        Whatever goes wrong is logged: no answer fails for it.
        """
        try:
            self._note(batch, answers, traces)
        except Exception:
            logger.exception("what became of %d requests is not told", len(answers))

    def _note(self, batch: Batch, answers: Sequence[Answer], traces: Sequence[Trace]) -> None:
        self._answered += len(answers)
        for index, item in enumerate(batch.items):
            if (
                type(item) is not Outcome
                or item.novelty is not None
                or item.decision.interventions
                or answers[index].status != 200
            ):
                self._tell_of(index, batch, answers[index], traces)
        if batch.started >= self._next:
            self._look_up(batch, answers, traces)

    def _tell_of(self, index: int, batch: Batch, answer: Answer, traces: Sequence[Trace]) -> None:
        item = batch.items[index]
        own = (batch.requests[index], traces[index] if traces else None)
        if answer.status >= 400:
            self._tell_error(item, answer, own)
        elif isinstance(item, Outcome):
            if item.decision.interventions:
                self._interventions.update(note.kind for note in item.decision.interventions)
                self._tell_interventions(own)
            if item.novelty is not None and item.novelty.is_ood.any():
                self._novel += int(item.novelty.is_ood.sum())
                self._tell_novelty(own)

    def _tell_error(self, item: Any, answer: Answer, own: tuple[Request, Trace | None]) -> None:
        is_fault = answer.status >= 500 and answer.status not in (503, 504)
        allowance = self._allowed["failed" if answer.status >= 500 else "refused"]
        if not allowance.take(self._clock()):
            return
        content = json.loads(answer.body)
        cause = item.__cause__ if isinstance(item, RequestError) else None
        tell(
            logger,
            logging.ERROR if is_fault else logging.WARNING,
            "request_error",
            f"answered {answer.status} {content['type']}",
            **_names(*own),
            status=answer.status,
            error_type=content["type"],
            findings=sorted({detail["type"] for detail in content["details"]})[:MAX_KINDS] or None,
            error=describe(cause, quoting=False) if cause else None,
            suppressed_before=allowance.settle(),
        )

    def _tell_interventions(self, own: tuple[Request, Trace | None] | None) -> None:
        if self._allowed["intervention"].spend(self._clock()):
            kinds = dict(self._interventions.most_common(MAX_KINDS))
            self._interventions.clear()
            message = "actions are not the policy's own"
            names = _names(*own) if own else {}
            tell(logger, logging.WARNING, "intervention", message, **names, kinds=kinds, rows=sum(kinds.values()))

    def _tell_novelty(self, own: tuple[Request, Trace | None] | None) -> None:
        if self._allowed["out_of_distribution"].spend(self._clock()):
            rows, self._novel = self._novel, 0
            names = _names(*own) if own else {}
            tell(logger, logging.WARNING, "out_of_distribution", "observations unlike training", **names, rows=rows)

    def _look_up(self, batch: Batch, answers: Sequence[Answer], traces: Sequence[Trace]) -> None:
        """What is told by the clock: an access event, and what was kept back."""
        now = self._clock()
        if now >= self._next_access:
            self._tell_access(batch, answers, traces, now)
        if now >= self._next_summary:
            self._next_summary = now + SUMMARY_INTERVAL_S
            if self._interventions:
                self._tell_interventions(None)
            if self._novel:
                self._tell_novelty(None)
            for name, allowance in self._allowed.items():
                if allowance.suppressed and allowance.spend(now):
                    message = f"more requests {name} than are told one by one"
                    tell(logger, logging.WARNING, "suppressed", message, suppressed_before=allowance.settle())
        self._next = min(self._next_access, self._next_summary)

    def _tell_access(self, batch: Batch, answers: Sequence[Answer], traces: Sequence[Trace], now: float) -> None:
        """Of the first prediction; probes and other sub-resources do not take its place."""
        index = next((index for index, item in enumerate(batch.items) if isinstance(item, Outcome)), None)
        if index is None:
            return
        self._next_access = now + self._access_interval_s
        request, item, answer = batch.requests[index], batch.items[index], answers[index]
        queued = queued_s(request.headers, now - batch.started)
        tell(
            logger,
            logging.INFO,
            "access",
            f"answered {answer.status}",
            **_names(request, traces[index] if traces else None),
            status=answer.status,
            rows=len(item.decision.controls) if isinstance(item, Outcome) else None,
            duration_ms=round((now - batch.started) * 1e3, 3),
            stage_ms=dict(batch.stage_ms),
            queue_ms=None if queued is None else round(queued * 1e3, 3),
            batch=len(batch.items),
            answered=self._answered,
        )
        self._answered = 0


def _names(request: Request, trace: Trace | None) -> Mapping[str, Any]:
    """By what a request is found in answers, logs and traces."""
    return {
        "request_id": request.request_id or None,
        "client_request_id": echoed_id(request.headers),
        "trace_id": trace.trace_id if trace else trace_id(request.headers),
        "span_id": trace.span_id if trace else None,
    }
