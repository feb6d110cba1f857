"""From a request's bytes to arrays, or to the error that it is answered with.

Numbers are float32 on both sides: an observation is rounded to it on arrival, and an action is written so that
reading it back gives the same float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from carla_policy.card import ModelCard
from carla_policy.errors import (
    BatchTooLarge,
    EmptyBody,
    ErrorDetail,
    InvalidEncoding,
    InvalidJson,
    InvalidOption,
    InvalidState,
    OutOfRange,
    RequestError,
    SchemaMismatch,
    ShapeMismatch,
    UnsupportedMediaType,
)
from carla_policy.golden import FloatArray
from carla_policy.messages import Observation, PredictRequest
from carla_policy.state import StateCodec

JSON_MEDIA_TYPE = "application/json"
MAX_DETAILS = 10
MAX_FINDINGS = 1_000
"""A body with more is refused without looking at each: that would take longer than reading it."""


@dataclass(frozen=True)
class Prediction:
    """A valid prediction request: observations `[rows, 2 + sensors]` float32, and the options."""

    observations: FloatArray
    deterministic: bool = True
    seed: int | None = None
    log_prob: bool = False
    state: FloatArray | None = None
    """To a recurrent policy, `[rows, state_size]` float32."""


_REQUEST = TypeAdapter(PredictRequest)


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """`UnsupportedMediaType` unless the body is declared as plain JSON, or not declared at all."""
    advice = f"send the JSON body as it is, with the header 'Content-Type: {JSON_MEDIA_TYPE}'"
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"content-encoding: compressed bodies are not read; {advice}")
    media_type, _, parameters = (content_type or JSON_MEDIA_TYPE).lower().partition(";")
    charset = parameters.replace('"', "").replace(" ", "")
    if media_type.strip() != JSON_MEDIA_TYPE or charset not in ("", "charset=utf-8"):
        raise UnsupportedMediaType(
            f"content-type: expected {JSON_MEDIA_TYPE} in UTF-8, got {content_type!r:.80}; {advice}"
        )


def parse_prediction(body: bytes | bytearray, card: ModelCard, codec: StateCodec | None = None) -> Prediction:
    """The request in `body`, held against the card's layout and limits; a `RequestError` names every field at fault.

    `codec` reads the state of a recurrent policy's requests.
    """
    if not body.strip():
        raise EmptyBody("body: expected a JSON object with 'observations', got nothing; POST the request as the body")
    try:
        request = _REQUEST.validate_json(body)
    except ValidationError as error:
        raise _refusal(body, error) from None
    observations = request["observations"]
    if not observations:
        raise ShapeMismatch.at("observations", "expected at least 1 observation, got 0", "too_short")
    limit = card.inference.max_observations
    if len(observations) > limit:
        message = f"expected at most {limit} observations, got {len(observations)}; split the request"
        raise BatchTooLarge.at("observations", message, "too_long")
    return Prediction(
        observations=_to_array(observations, card),
        deterministic=request.get("deterministic", True),
        seed=request.get("seed"),
        log_prob=request.get("log_prob", False),
        state=_to_state(request, codec),
    )


def _to_state(request: PredictRequest, codec: StateCodec | None) -> FloatArray | None:
    token, starts, rows = request.get("state"), request.get("episode_start", False), len(request["observations"])
    if codec is None:
        if token is not None:
            raise InvalidState.at("state", "this version keeps no state; leave it out", "unexpected")
        return None
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


def _to_array(observations: Sequence[Observation], card: ModelCard) -> FloatArray:
    sensors = card.observation.sensors
    lengths = [(row, len(observation["sensors"])) for row, observation in enumerate(observations)]
    wrong = [(row, length) for row, length in lengths if length != sensors]
    if wrong:
        raise _details(
            ShapeMismatch,
            [
                (f"observations[{row}].sensors", f"expected {sensors} values, got {length}", "length")
                for row, length in wrong[:MAX_DETAILS]
            ],
            len(wrong),
        )
    exact = np.array([[o["speed"], o["steering"], *o["sensors"]] for o in observations], np.float64)
    fields = card.observation.fields
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    low, high = card.observation.bounds
    outside = np.argwhere(~((rounded >= low) & (rounded <= high)))
    if len(outside):
        raise _details(
            OutOfRange,
            [
                (
                    f"observations[{row}].{_column_path(column)}",
                    f"{fields[column].name} must lie within [{fields[column].low}, {fields[column].high}] "
                    f"{fields[column].unit}, got {exact[row, column]}",
                    "out_of_range",
                )
                for row, column in outside[:MAX_DETAILS]
            ],
            len(outside),
        )
    return rounded


def _column_path(column: int) -> str:
    return ("speed", "steering")[column] if column < 2 else f"sensors[{column - 2}]"


def _details(error: type[RequestError], findings: Sequence[tuple[str, str, str]], total: int) -> RequestError:
    details: list[ErrorDetail] = [{"loc": loc, "msg": msg, "type": kind} for loc, msg, kind in findings[:MAX_DETAILS]]
    more = f" (and {total - 1} more)" if total > 1 else ""
    return error(f"{findings[0][0]}: {findings[0][1]}{more}", details)


def _refusal(body: bytes | bytearray, error: ValidationError) -> RequestError:
    if error.error_count() > MAX_FINDINGS:
        return SchemaMismatch(f"body: {error.error_count()} fields do not fit a request; send observations and options")
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return _unreadable(bytes(body), first["ctx"]["error"])
    if any(isinstance(error["input"], float) and not math.isfinite(error["input"]) for error in errors):
        return InvalidJson("body: NaN, Infinity and numbers beyond float64 are not JSON numbers; send finite numbers")
    findings = [(_path(error["loc"]) or "body", _finding(error), error["type"]) for error in errors]
    return _details(_class_of(first), findings, len(findings))


def _unreadable(body: bytes, reason: str) -> RequestError:
    try:
        if body.decode("utf-8").startswith("\ufeff"):
            return InvalidEncoding("body: starts with a byte order mark; send UTF-8 without one")
    except UnicodeDecodeError as error:
        return InvalidEncoding(f"body: not UTF-8 at byte {error.start}; send JSON encoded in UTF-8")
    return InvalidJson(f"body: not a JSON document: {reason}")


def _class_of(error: ErrorDetails) -> type[RequestError]:
    loc = error["loc"]
    if loc[:1] in (("deterministic",), ("seed",), ("log_prob",)) and error["type"] != "missing":
        return InvalidOption
    if loc[:1] in (("state",), ("episode_start",)):
        return InvalidState
    if loc[2:3] == ("sensors",) and len(loc) == 4 and isinstance(error["input"], list):
        return ShapeMismatch
    return SchemaMismatch


def _path(loc: Sequence[int | str]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".")[:200]


def _finding(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "this field is required, but missing"
    if error["type"] == "extra_forbidden":
        return "not a field of a request; remove it"
    return f"expected {error['msg'].removeprefix('Input should be ')}, got {_what(error['input'])}"


def _what(value: Any) -> str:
    kind = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kind.get(type(value), f"{value!r:.40}")
