"""Answer a batch of requests to one version, each by itself.

Rows of different requests share the preprocessor and the network, whose work on a row does not depend on its batch
mates. Everything else, from parsing to the answer, happens per request: what is wrong with one is answered to that
one only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import to_json

from carla_policy.actions import CONTROLS
from carla_policy.errors import InternalFailure, RequestError, UnknownResource
from carla_policy.golden import FloatArray
from carla_policy.heads import draw_seed
from carla_policy.loading import LoadedPolicy
from carla_policy.policy import Decision
from carla_policy.wire import ErrorAnswer, PredictAnswer, Prediction, check_media_type, parse_prediction

logger = logging.getLogger(__name__)


Resource = Callable[[], Mapping[str, Any]]
"""What answers a sub-resource."""

WARM_VECTORS = 16
"""As many as the tile and the just-in-time compiler need to be warm, few enough not to be felt by batch mates."""


@dataclass(frozen=True)
class Request:
    """One request as a front end hands it over; `resource` is the path behind the version, empty for a prediction."""

    body: bytes | bytearray
    content_type: str | None = None
    content_encoding: str | None = None
    resource: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Answer:
    """A JSON body, a status, and headers whose values are plain ASCII."""

    body: bytes
    status: int = 200
    phrase: str = "OK"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a prediction came to: the decision, and the seed it took where it was stochastic."""

    decision: Decision
    deterministic: bool
    seed: int


@dataclass(frozen=True)
class Batch:
    """Requests on their way: each `item` becomes, stage by stage, an outcome, a resource's content or an error.

    `stage_ms` holds the milliseconds of each stage so far; the stages do not overlap.
    """

    requests: Sequence[Request]
    items: Sequence[Prediction | Resource | Outcome | Mapping[str, Any] | RequestError]
    started: float
    stage_ms: Mapping[str, float]


class PolicyService:
    """Answers predictions and the sub-resources `healthz`, `metadata` and `warmup` of one loaded policy."""

    def __init__(self, loaded: LoadedPolicy) -> None:
        self.loaded = loaded
        self._policy = loaded.policy
        self._card = loaded.policy.card
        self._resources: dict[str, Resource] = {
            "healthz": self.health,
            "metadata": self.metadata,
            "warmup": self.warm_up,
        }

    def parse(self, requests: Sequence[Request]) -> Batch:
        """First stage: each request's bytes to observations or to the error that it will be answered with."""
        started = time.perf_counter()
        items = [self._guarded(self._parse_one, request) for request in requests]
        return Batch(requests, items, started, {"parse": _ms_since(started)})

    def infer(self, batch: Batch) -> Batch:
        """Second stage: one pass of preprocessor and network over the rows of all predictions, then a decision each.

        Sub-resources come last, so that no prediction waits for them.
        """
        predictions = [(index, item) for index, item in enumerate(batch.items) if isinstance(item, Prediction)]
        items = list(batch.items)
        timings = dict(batch.stage_ms)
        if predictions:
            try:
                parameters = self._evaluate([prediction.observations for _, prediction in predictions], timings)
                started = time.perf_counter()
                for (index, prediction), own in zip(predictions, parameters, strict=True):
                    items[index] = self._guarded(self._decide, prediction, own)
                timings["decide"] = _ms_since(started)
            except Exception:
                logger.exception("a batch of %d predictions failed; trying each by itself", len(predictions))
                for index, prediction in predictions:
                    items[index] = self._guarded(self._predict_alone, prediction)
        for index, item in enumerate(items):
            if callable(item):
                items[index] = self._guarded(item)
        return Batch(batch.requests, items, batch.started, timings)

    def encode(self, batch: Batch) -> list[Answer]:
        """Last stage: an answer for each request, in order."""
        return [
            self._encode_one(request, item, batch) for request, item in zip(batch.requests, batch.items, strict=True)
        ]

    def health(self) -> Mapping[str, Any]:
        """Replays one golden vector: `ok` means that this worker answers it now, as training did."""
        golden = self.loaded.golden
        decision = self._policy.act(golden.observations[:1])
        expected = self._policy.decide(golden.deterministic_actions[:1])
        difference = np.abs(decision.controls.astype(np.float64) - expected.controls)
        if not (difference <= self._card.parity.atol).all():
            raise InternalFailure("healthz: the first golden vector is not reproduced any more; restart this worker")
        return {"status": "ok", "version": self._card.version, "gitSha": self._card.git_sha}

    def metadata(self) -> Mapping[str, Any]:
        """What is served: the card, and what this worker made of it."""
        card, policy = self._card, self._policy
        return {
            "name": card.model_name,
            "version": card.version,
            "gitSha": card.git_sha,
            "device": str(policy.runtime.device),
            "inputShape": [card.observation.columns],
            "actionSpace": {
                "layout": list(CONTROLS),
                "low": [0.0, 0.0, -1.0],
                "high": [1.0, 1.0, 1.0],
                "policy": card.action.model_dump(mode="json"),
            },
            "head": card.head.model_dump(mode="json"),
            "safety": card.safety.model_dump(mode="json"),
            "preprocessor": policy.preprocessor.form,
            "selfTest": {
                "vectors": len(self.loaded.golden),
                "stages": [
                    {
                        "stage": parity.stage,
                        "bitEqualShare": parity.bit_equal_share,
                        "maxAbsDifference": parity.max_abs_difference,
                        "maxUlp": parity.max_ulp,
                    }
                    for parity in self.loaded.parity
                ],
            },
            "card": card.model_dump(mode="json"),
        }

    def warm_up(self) -> Mapping[str, Any]:
        """Act on golden observations, so that nothing is done for the first time by a client's request.

        A worker has replayed all golden vectors before it is ready; this is for one that has been idle since.
        """
        started = time.perf_counter()
        observations = self.loaded.golden.observations[:WARM_VECTORS]
        for deterministic in (True, False):
            self._policy.act(observations, deterministic=deterministic)
        return {
            "status": "warm",
            "version": self._card.version,
            "vectors": len(observations),
            "timingMs": _ms_since(started),
        }

    def _parse_one(self, request: Request) -> Prediction | Resource:
        if not request.resource:
            check_media_type(request.content_type, request.content_encoding)
            return parse_prediction(request.body, self._card)
        if request.resource not in self._resources:
            raise UnknownResource(
                f"{request.resource[:80]!r} is no resource of {self._card.version}; "
                f"there are {', '.join(self._resources)}, and predictions at the version itself"
            )
        return self._resources[request.resource]

    def _evaluate(self, observations: Sequence[FloatArray], timings: dict[str, float]) -> list[dict[str, FloatArray]]:
        started = time.perf_counter()
        features = self._policy.preprocessor(np.concatenate(observations))
        timings["preprocess"] = _ms_since(started)
        started = time.perf_counter()
        parameters = self._policy.evaluate(features)
        timings["infer"] = _ms_since(started)
        ends = np.cumsum([len(rows) for rows in observations])
        return [
            {name: values[end - len(rows) : end] for name, values in parameters.items()}
            for rows, end in zip(observations, ends, strict=True)
        ]

    def _decide(self, prediction: Prediction, parameters: Mapping[str, FloatArray]) -> Outcome:
        seed = draw_seed() if prediction.seed is None else prediction.seed
        actions = self._policy.select(parameters, deterministic=prediction.deterministic, seed=seed)
        return Outcome(self._policy.decide(actions), prediction.deterministic, seed)

    def _predict_alone(self, prediction: Prediction) -> Outcome:
        return self._decide(prediction, self._evaluate([prediction.observations], {})[0])

    def _guarded(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except RequestError as error:
            return error
        except Exception:
            logger.exception("a request failed in %s", step.__name__)
            return InternalFailure("the service failed on this request; its log says why")

    def _encode_one(self, request: Request, item: Any, batch: Batch) -> Answer:
        headers = {"x-policy-version": self._card.version}
        if isinstance(item, RequestError):
            error: ErrorAnswer = {
                "code": item.status,
                "type": item.type,
                "message": str(item),
                "details": list(item.details),
                "requestId": request.request_id,
            }
            return Answer(to_json(error), item.status, item.phrase, headers)
        if not isinstance(item, Outcome):
            return Answer(to_json(item), headers=headers)
        rows = item.decision.controls.tolist()
        total_ms = _ms_since(batch.started)
        answer: PredictAnswer = {
            "actions": [{"throttle": row[0], "brake": row[1], "steer": row[2]} for row in rows],
            "version": self._card.version,
            "timingMs": total_ms,
            "deterministic": item.deterministic,
        }
        if not item.deterministic:
            answer["seed"] = item.seed
        if item.decision.interventions:
            answer["interventions"] = [
                {"observation": note.observation, "kind": note.kind} for note in item.decision.interventions
            ]
        stages = {**batch.stage_ms, "total": total_ms}
        headers["server-timing"] = ", ".join(
            f"{stage};dur={milliseconds:.3f}" for stage, milliseconds in stages.items()
        )
        return Answer(to_json(answer), headers=headers)


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 4)
