"""From what became of a request to the bytes and headers of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from carla_policy.card import ModelCard
from carla_policy.errors import RequestError
from carla_policy.golden import FloatArray
from carla_policy.media import JSON_MEDIA_TYPE, NPY_MEDIA_TYPE
from carla_policy.messages import ErrorAnswer, OodNote, PredictAnswer
from carla_policy.npy import SEED_HEADER, dump_npy
from carla_policy.ood import Novelty
from carla_policy.policy import Decision
from carla_policy.state import StateCodec


class Answer(NamedTuple):
    """A body, its media type, a status, and headers whose values are plain ASCII."""

    body: bytes
    status: int = 200
    phrase: str = "OK"
    headers: Mapping[str, str] = MappingProxyType({})
    content_type: str = JSON_MEDIA_TYPE


class Outcome(NamedTuple):
    """What a prediction came to: the decision, how it was taken, and what the client is told beside it."""

    decision: Decision
    actions: FloatArray | None = None
    """The policy's own `[rows, dims]`, where it was asked."""
    deterministic: bool = True
    seed: int = 0
    """Of a stochastic action."""
    novelty: Novelty | None = None
    next_state: FloatArray | None = None
    log_probs: NDArray[np.float64] | None = None
    binary: bool = False
    """Whether it is answered as an array."""


class Timing:
    """How long a batch took, in milliseconds: each stage, and all of it; `header` is `Server-Timing`'s value."""

    def __init__(self, stage_ms: Mapping[str, float], total_ms: float) -> None:
        self.total_ms = total_ms
        stages = {**stage_ms, "total": total_ms}
        self.header = ", ".join([f"{stage};dur={milliseconds:.3f}" for stage, milliseconds in stages.items()])


class AnswerEncoder:
    """Writes the answers of one version."""

    def __init__(self, card: ModelCard, codec: StateCodec | None) -> None:
        self._card = card
        self._codec = codec
        self._headers = {"x-policy-version": card.version}

    def error(self, error: RequestError, request_id: str) -> Answer:
        body: ErrorAnswer = {
            "code": error.status,
            "type": error.type,
            "message": str(error),
            "details": list(error.details),
            "requestId": request_id,
        }
        return Answer(to_json(body), error.status, error.phrase, self._headers)

    def resource(self, content: Mapping[str, Any]) -> Answer:
        return Answer(to_json(content), headers=self._headers)

    def prediction(self, outcome: Outcome, timing: Timing) -> Answer:
        headers = {**self._headers, "server-timing": timing.header, **_notes(outcome)}
        if outcome.binary:
            return Answer(dump_npy(outcome.decision.controls), headers=headers, content_type=NPY_MEDIA_TYPE)
        return Answer(to_json(self._body(outcome, timing.total_ms)), headers=headers)

    def _body(self, outcome: Outcome, total_ms: float) -> PredictAnswer:
        rows = outcome.decision.controls.tolist()
        body: PredictAnswer = {
            "actions": [{"throttle": row[0], "brake": row[1], "steer": row[2]} for row in rows],
            "version": self._card.version,
            "timingMs": total_ms,
            "deterministic": outcome.deterministic,
        }
        if not outcome.deterministic:
            body["seed"] = outcome.seed
        if outcome.decision.interventions:
            body["interventions"] = [
                {"observation": note.observation, "kind": note.kind} for note in outcome.decision.interventions
            ]
        if outcome.novelty is not None and outcome.novelty.is_ood.any():
            body["ood"] = ood_notes(outcome.novelty, self._card)
        if outcome.log_probs is not None:
            body["log_probs"] = [float(value) if np.isfinite(value) else None for value in outcome.log_probs]
        if self._codec is not None and outcome.next_state is not None:
            body["state"] = self._codec.encode(outcome.next_state)
        return body


def ood_notes(novelty: Novelty, card: ModelCard) -> list[OodNote]:
    """One for each observation that is out of distribution."""
    names, threshold = card.observation.names, card.ood.threshold if card.ood else 0.0
    return [
        {
            "observation": int(row),
            "outside": [names[column] for column in np.flatnonzero(novelty.outside[row])],
            "distance": float(novelty.distance[row]) if np.isfinite(novelty.distance[row]) else None,
            "threshold": threshold,
        }
        for row in np.flatnonzero(novelty.is_ood)
    ]


def _notes(outcome: Outcome) -> dict[str, str]:
    """What a proxy in front can count without reading bodies, and what an array has no place for."""
    notes = {}
    if outcome.decision.interventions:
        notes["x-policy-interventions"] = ",".join(sorted({note.kind for note in outcome.decision.interventions}))
    if outcome.novelty is not None and outcome.novelty.is_ood.any():
        notes["x-policy-ood"] = str(int(outcome.novelty.is_ood.sum()))
    if outcome.binary and not outcome.deterministic:
        notes[SEED_HEADER] = str(outcome.seed)
    return notes
