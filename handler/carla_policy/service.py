"""Answer a batch of requests to one version, each by itself.

Rows of different requests share the preprocessor and the network, whose work on a row does not depend on its batch
mates. Everything else, from parsing to the answer, happens per request: what is wrong with one is answered to that
one only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from carla_policy import episodes
from carla_policy.answers import Answer, AnswerEncoder, Outcome, Timing
from carla_policy.batch import Batch, Request, Work, guarded
from carla_policy.breaker import CircuitBreaker
from carla_policy.deadline import Late, Watch, due
from carla_policy.deciding import Decider
from carla_policy.errors import (
    BatchTooLarge,
    DeadlineExceeded,
    Draining,
    RequestError,
    UnknownResource,
)
from carla_policy.events import describe, tell, without_values
from carla_policy.golden import FloatArray
from carla_policy.headers import refuse_repeated
from carla_policy.heads import draw_seed
from carla_policy.loading import LoadedPolicy
from carla_policy.media import NPY_MEDIA_TYPE, media_type
from carla_policy.messages import EpisodeReport
from carla_policy.metrics.recorder import Recorder
from carla_policy.npy import parse_npy
from carla_policy.policy import Evaluation
from carla_policy.prediction import Prediction
from carla_policy.resources import Resource, Resources
from carla_policy.state import StateCodec
from carla_policy.wire import Draft, JsonReader

logger = logging.getLogger(__name__)

DEFAULT_MAX_ANSWER_BYTES = 6_553_500
"""TorchServe's own limit, where its configuration has no other; a larger answer would end the worker."""


class PolicyService:
    """Answers predictions and the sub-resources of one loaded policy.

    Holds nothing of a request; the circuit breaker, off unless the card wants one, is all that it remembers.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        is_draining: Callable[[], bool] = lambda: False,
        *,
        watch: Watch | None = None,
        max_answer_bytes: int = DEFAULT_MAX_ANSWER_BYTES,
    ) -> None:
        """`is_draining` is asked once for each batch; while it says so, new work is refused.

        `watch` runs passes that have a deadline.
        """
        self.loaded = loaded
        self._is_draining = is_draining
        self._watch = watch or Watch()
        self._max_answer_bytes = max_answer_bytes
        self._policy = loaded.policy
        card = loaded.policy.card
        self._card = card
        self._breaker = CircuitBreaker(card.safety.circuit_breaker, on_change=_tell_circuit)
        self.state_codec = StateCodec(card.card_hash, card.recurrent.state_size) if card.recurrent else None
        self._reader = JsonReader(card, self.state_codec)
        self._decider = Decider(loaded.policy, self._breaker)
        self._encoder = AnswerEncoder(card, self.state_codec)
        self._resources = Resources(loaded, self._breaker, self._watch)
        self.recorder = Recorder(loaded, self._breaker)

    def metadata(self) -> Mapping[str, Any]:
        """What is served: the card, and what this worker made of it."""
        return self._resources.metadata()

    def parse(self, requests: Sequence[Request]) -> Batch:
        """First stage: each request's bytes to observations or to the error that it will be answered with."""
        started = time.perf_counter()
        step = self._refuse_work if self._is_draining() else self._parse_one
        items = [guarded(step, request, started) for request in requests]
        drafts = [index for index, item in enumerate(items) if isinstance(item, Draft)]
        if drafts:
            finished = self._reader.finish([items[index] for index in drafts])
            for index, item in zip(drafts, finished, strict=True):
                items[index] = item
        return Batch(requests, items, started, {"parse": _ms_since(started)})

    def infer(self, batch: Batch) -> Batch:
        """Second stage: one pass of preprocessor and network over the rows of all predictions, then a decision each.

        Sub-resources come last, so that no prediction waits for them.
        """
        items = list(batch.items)
        work = Work(dict(batch.stage_ms))
        asked: list[int] = []
        for index, item in enumerate(items):
            if isinstance(item, Prediction):
                if _is_late(item):
                    items[index] = guarded(self._answer_late, item)
                elif self._breaker.allows(already_asked=bool(asked)):
                    asked.append(index)
                else:
                    items[index] = guarded(self._answer_while_open, item)
        if asked:
            predictions: list[Any] = [items[index] for index in asked]
            answered = self._answer_all(predictions, work)
            for index, outcome in zip(asked, answered, strict=True):
                items[index] = outcome
        if len(asked) < len(items):
            items = [guarded(item) if callable(item) else item for item in items]
        return Batch(batch.requests, items, batch.started, work.stage_ms, work.evaluations)

    def encode(self, batch: Batch) -> list[Answer]:
        """Last stage: an answer for each request, in order. They leave together, so they took equally long."""
        started = time.perf_counter()
        timing = Timing(batch.stage_ms, _ms_since(batch.started))
        answers = [
            self._encode_one(request, item, timing) for request, item in zip(batch.requests, batch.items, strict=True)
        ]
        self.recorder.record(batch, answers, _ms_since(started))
        return answers

    def _answer_all(self, predictions: Sequence[Prediction], work: Work) -> Sequence[Outcome | RequestError]:
        try:
            evaluation = self._evaluate(predictions, work)
        except Late:
            return [guarded(self._give_up, prediction) for prediction in predictions]
        except Exception as error:
            text = f"the network failed on a batch of {len(predictions)} predictions; trying each by itself"
            _tell_failure(text, error)
            return [guarded(self._predict_alone, prediction, work) for prediction in predictions]
        started = time.perf_counter()
        decided = self._decider.decide_all(predictions, evaluation)
        work.stage_ms["decide"] = _ms_since(started)
        return [
            guarded(self._answer_late, prediction) if _is_late(prediction) else outcome
            for prediction, outcome in zip(predictions, decided, strict=True)
        ]

    def _refuse_work(self, _: Request, __: float) -> None:
        raise Draining("this server is about to stop and takes no new requests; send it to another, or again later")

    def _parse_one(self, request: Request, arrived: float) -> Draft | Prediction | Resource:
        if request.resource == episodes.RESOURCE:
            refuse_repeated(request.repeated)
            return partial(self._note_episode, episodes.parse_report(request.body, request.headers))
        if request.body or not request.resource:
            # The path behind the version comes as a header, which clients can send too: a body asks for a prediction.
            refuse_repeated(request.repeated)
            form = media_type(request.headers)
            latest = due(request.headers, self._card.inference.deadline_ms, arrived)
            if form == NPY_MEDIA_TYPE:
                return parse_npy(request.body, request.headers, self._card)._replace(due=latest)
            draft = self._reader.draft(request.body)
            return draft if latest is None else draft._replace(due=latest)
        resources = self._resources.by_name
        if request.resource not in resources:
            raise UnknownResource(
                f"{request.resource[:80]!a} is no resource of {self._card.version}; "
                f"there are {', '.join(resources)}, {episodes.RESOURCE}, and predictions at the version itself"
            )
        return resources[request.resource]

    def _note_episode(self, report: EpisodeReport) -> Mapping[str, Any]:
        self.recorder.count_episode(report)
        return {"status": "recorded", "version": self._card.version}

    def _evaluate(self, predictions: Sequence[Prediction], work: Work) -> Evaluation:
        """Of the rows of all `predictions`; `Late` if there is none at the latest of their deadlines."""
        dues = [prediction.due for prediction in predictions if prediction.due is not None]
        if len(dues) < len(predictions):
            return self._evaluate_now(predictions, work)
        latest = max(dues)
        own = Work()  # a pass that was given up may still write to it
        evaluation: Evaluation = self._watch.run(
            lambda: self._evaluate_now(predictions, own), latest - time.perf_counter()
        )
        work.stage_ms |= own.stage_ms
        work.evaluations += own.evaluations
        return evaluation

    def _evaluate_now(self, predictions: Sequence[Prediction], work: Work) -> Evaluation:
        started = time.perf_counter()
        observations = _joined([prediction.observations for prediction in predictions])
        features = self._policy.preprocessor(observations)
        work.stage_ms["preprocess"] = _ms_since(started)
        started = time.perf_counter()
        states = [prediction.state for prediction in predictions if prediction.state is not None]
        evaluation = self._policy.evaluate(observations, features, _joined(states) if states else None)
        work.stage_ms["infer"] = _ms_since(started)
        work.evaluations.append(evaluation)
        return evaluation

    def _predict_alone(self, prediction: Prediction, work: Work) -> Outcome:
        own = Work(evaluations=work.evaluations)
        try:
            evaluation = self._evaluate([prediction], own)
        except Late:
            return self._give_up(prediction)
        except Exception as error:
            _tell_failure("the network failed on a request; it gets the fallback action", error)
            self._record_failures(prediction)
            return self._fall_back(prediction, "fallback")
        return self._answer_late(prediction) if _is_late(prediction) else self._decider.decide(prediction, evaluation)

    def _give_up(self, prediction: Prediction) -> Outcome:
        self._record_failures(prediction)
        return self._answer_late(prediction)

    def _record_failures(self, prediction: Prediction) -> None:
        for _ in range(len(prediction.observations)):
            self._breaker.record(failed=True)

    def _answer_late(self, prediction: Prediction) -> Outcome:
        if self._card.inference.late == "reject":
            raise DeadlineExceeded("no answer before the deadline; take the safe action, and ask again")
        return self._fall_back(prediction, "deadline")

    def _answer_while_open(self, prediction: Prediction) -> Outcome:
        return self._fall_back(prediction, "circuit_open")

    def _fall_back(self, prediction: Prediction, kind: str) -> Outcome:
        """The safe action; a recurrent policy's state goes back as it came."""
        return Outcome(
            decision=self._policy.fall_back(prediction.observations, kind),
            deterministic=prediction.deterministic,
            seed=draw_seed() if prediction.seed is None else prediction.seed,
            next_state=prediction.state,
            binary=prediction.binary,
        )

    def _encode_one(self, request: Request, item: Any, timing: Timing) -> Answer:
        if isinstance(item, RequestError):
            return self._encoder.error(item, request.request_id)
        if not isinstance(item, Outcome):
            return self._encoder.resource(item)
        answer = self._encoder.prediction(item, timing)
        limit = self._max_answer_bytes
        if len(answer.body) > limit:
            rows = len(item.decision.controls)
            message = f"the answer to {rows} observations has {len(answer.body)} bytes, of {limit}; split the request"
            return self._encoder.error(BatchTooLarge.at("observations", message, "too_long"), request.request_id)
        return answer


def _tell_failure(message: str, error: Exception) -> None:
    described = {**describe(error, quoting=False), "message": without_values(str(error))}
    tell(logger, logging.ERROR, "network_failed", message, error=described)


def _tell_circuit(before: str, after: str) -> None:
    level = logging.INFO if after == "closed" else logging.WARNING
    tell(logger, level, "circuit_breaker", f"the circuit is {after}", state=after, state_before=before)


def _is_late(prediction: Prediction) -> bool:
    return prediction.due is not None and time.perf_counter() >= prediction.due


def _joined(parts: Sequence[FloatArray]) -> FloatArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 4)
