"""From a JSON request's bytes to arrays, or to the error that it is answered with.

A good request is read in one pass. One that this pass refuses, or that may have a key twice, is read again, strictly,
which takes longer and says exactly what is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from carla_policy import strict_json
from carla_policy.card import ModelCard
from carla_policy.errors import (
    BatchTooLarge,
    EmptyBody,
    InvalidOption,
    InvalidState,
    OutOfRange,
    RequestError,
    SchemaMismatch,
    ShapeMismatch,
)
from carla_policy.findings import MAX_FINDINGS, refusal
from carla_policy.golden import FloatArray
from carla_policy.messages import Observation, PredictRequest
from carla_policy.prediction import MAX_DETAILS, Prediction, check_rows, listing, within_bounds
from carla_policy.state import StateCodec

BYTES_PER_NUMBER = 40
"""A float64 written out takes up to 24, and 16 are for who puts each on a line of its own."""
BYTES_PER_OBSERVATION = 200
BYTES_OF_OPTIONS = 4_096
_SMALL = 65_536
_KEYS_OF_REQUEST, _KEYS_OF_OBSERVATION = len(PredictRequest.__annotations__), len(Observation.__annotations__)

_REQUEST = TypeAdapter(PredictRequest)
_validate_json = _REQUEST.validator.validate_json


class Draft(NamedTuple):
    """A request whose numbers are still to be held against the card's bounds; `rows` are speed, steering, sensors."""

    rows: list[list[float]]
    deterministic: bool = True
    seed: int | None = None
    log_prob: bool = False
    state: FloatArray | None = None
    due: float | None = None

    def finished(self, observations: FloatArray) -> Prediction:
        """The prediction, with `observations` `[rows, 2 + sensors]` in place of `rows`."""
        return Prediction(observations, self.deterministic, self.seed, self.log_prob, self.state, due=self.due)


class JsonReader:
    """Reads the requests of one version."""

    def __init__(self, card: ModelCard, codec: StateCodec | None = None) -> None:
        """`codec` reads the state of a recurrent policy's requests."""
        self._card = card
        self._codec = codec
        self._sensors = card.observation.sensors
        limit = card.inference.max_observations
        self._max_bytes = max_body_bytes(card)
        self._max_brackets = 2 * limit + 3
        self._max_quotes = 2 * (_KEYS_OF_REQUEST + _KEYS_OF_OBSERVATION * limit + 1)

    def draft(self, body: bytes | bytearray) -> Draft:
        """The request in `body`; a `RequestError` names every field at fault, but for numbers out of bounds."""
        if len(body) > self._max_bytes:
            _refuse_blank(body)
            raise self._too_large(body)
        request = self._read_fast(body) or _read_strictly(body)
        observations = request["observations"]
        check_rows(len(observations), self._card)
        return Draft(
            self._rows(observations),
            request.get("deterministic", True),
            request.get("seed"),
            request.get("log_prob", False),
            _to_state(request, self._codec),
        )

    def finish(self, drafts: Sequence[Draft]) -> list[Prediction | RequestError]:
        """Each of `drafts` as a prediction, or what is wrong with its numbers.

        Numbers are nearly always within bounds, so those of all requests are looked at in one go.
        """
        try:
            together = self._within_bounds([row for draft in drafts for row in draft.rows])
        except RequestError:
            return [self._finish_alone(draft) for draft in drafts]
        ends = itertools.accumulate([len(draft.rows) for draft in drafts])
        return [draft.finished(together[end - len(draft.rows) : end]) for draft, end in zip(drafts, ends, strict=True)]

    def _finish_alone(self, draft: Draft) -> Prediction | RequestError:
        try:
            return draft.finished(self._within_bounds(draft.rows))
        except RequestError as error:
            return error

    def _within_bounds(self, rows: list[list[float]]) -> FloatArray:
        return within_bounds(np.array(rows, np.float64), self._card)

    def _too_large(self, body: bytes | bytearray) -> RequestError:
        limit, rows = self._max_bytes, self._card.inference.max_observations
        message = f"expected at most {limit} bytes, enough for {rows} observations, got {len(body)}; split the request"
        return BatchTooLarge.at("body", message, "too_long")

    def _read_fast(self, body: bytes | bytearray) -> PredictRequest | None:
        """The request, unless it is at fault or has to be looked at more closely."""
        quotes = body.count(b'"')
        if quotes > self._max_quotes or b"\\" in body:
            return None
        if len(body) > _SMALL and body.count(b"[") + body.count(b"{") > self._max_brackets:
            return None  # no request, but what would take the parser most of its time and memory
        try:
            request: PredictRequest = _validate_json(body)
        except ValidationError:
            return None
        # No key is unknown and none is escaped, so each quotation mark beyond these is of a key that is there twice.
        strings = len(request) + _KEYS_OF_OBSERVATION * len(request["observations"]) + ("state" in request)
        return request if quotes == 2 * strings else None

    def _rows(self, observations: Sequence[Observation]) -> list[list[float]]:
        """Speed, steering and sensors of each."""
        sensors, rows = self._sensors, []
        for observation in observations:
            values = observation["sensors"]
            if len(values) != sensors:
                raise _wrong_lengths(observations, sensors)
            rows.append([observation["speed"], observation["steering"], *values])
        return rows


def max_body_bytes(card: ModelCard) -> int:
    """The most that the largest request to this version takes, generously written."""
    state = 6 * card.recurrent.state_size if card.recurrent else 0
    per_observation = BYTES_PER_OBSERVATION + BYTES_PER_NUMBER * card.observation.columns + state
    return BYTES_OF_OPTIONS + per_observation * card.inference.max_observations


def _refuse_blank(body: bytes | bytearray) -> None:
    if not body.strip():
        raise EmptyBody("body: expected a JSON object with 'observations', got nothing; POST the request as the body")


def _read_strictly(body: bytes | bytearray) -> PredictRequest:
    _refuse_blank(body)
    document = strict_json.parse(body)
    if isinstance(document, dict) and len(document) > MAX_FINDINGS:
        raise SchemaMismatch(f"body: {len(document)} fields do not fit a request; send observations and options")
    try:
        return _REQUEST.validate_python(document)
    except ValidationError as error:
        raise refusal(error, _class_of) from None


def _to_state(request: PredictRequest, codec: StateCodec | None) -> FloatArray | None:
    token = request.get("state")
    if codec is None:
        if token is not None:
            raise InvalidState.at("state", "this version keeps no state; leave it out", "unexpected")
        return None
    starts, rows = request.get("episode_start", False), len(request["observations"])
    if isinstance(starts, list) and len(starts) != rows:
        raise InvalidState.at("episode_start", f"expected a boolean, or one for each of {rows} observations", "length")
    start = np.broadcast_to(np.array(starts, np.bool_), (rows,))
    if start.all():
        return np.zeros((rows, codec.state_size), np.float32)
    if token is None:
        message = "this version is recurrent: send the state of the last answer, or episode_start: true at the start"
        raise InvalidState.at("state", message, "missing")
    state = codec.decode(token, rows)
    state[start] = 0.0
    return state


def _wrong_lengths(observations: Sequence[Observation], sensors: int) -> RequestError:
    lengths = [len(observation["sensors"]) for observation in observations]
    wrong = [(row, length) for row, length in enumerate(lengths) if length != sensors]
    findings = [
        (f"observations[{row}].sensors", f"expected {sensors} values, got {length}", "length")
        for row, length in wrong[:MAX_DETAILS]
    ]
    return listing(ShapeMismatch, findings, len(wrong))


def _class_of(error: ErrorDetails) -> type[RequestError]:
    loc, value = error["loc"], error["input"]
    if loc[:1] in (("deterministic",), ("seed",), ("log_prob",)):
        return InvalidOption
    if loc[:1] in (("state",), ("episode_start",)):
        return InvalidState
    if loc[2:3] == ("sensors",) and isinstance(value, list):
        return ShapeMismatch
    if error["type"] == "float_type" and isinstance(value, int) and not isinstance(value, bool):
        return OutOfRange  # an integer that no float64 holds
    return SchemaMismatch
