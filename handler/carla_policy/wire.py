"""The wire: request and answer types, and the way from a request's bytes to arrays.

A request is `{"observations": [{"speed", "steering", "sensors"}], "deterministic", "seed"}`; an answer is
`{"actions": [{"throttle", "brake", "steer"}], "version", "timingMs", "deterministic"}`, with `seed` when stochastic
and `interventions` when the safety envelope changed something. Numbers are float32 on both sides: an observation is
rounded to it on arrival, and an action is written so that reading it back gives the same float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from carla_policy.card import ModelCard
from carla_policy.errors import (
    BatchTooLarge,
    EmptyBody,
    ErrorDetail,
    InvalidEncoding,
    InvalidJson,
    InvalidOption,
    OutOfRange,
    RequestError,
    SchemaMismatch,
    ShapeMismatch,
    UnsupportedMediaType,
)
from carla_policy.golden import FloatArray
from carla_policy.heads import SEED_BITS

JSON_MEDIA_TYPE = "application/json"
MAX_DETAILS = 10
MAX_FINDINGS = 1_000
"""A body with more is refused without looking at each: that would take longer than reading it."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@with_config(_STRICT)
class Observation(TypedDict):
    """What the vehicle senses, in the units of the version's model card."""

    speed: float
    steering: float
    sensors: Annotated[list[float], FailFast()]


@with_config(_STRICT)
class PredictRequest(TypedDict):
    """Body of a prediction."""

    observations: Annotated[list[Observation], FailFast()]
    deterministic: NotRequired[bool]
    """The distribution's mode (true, the default) or a sample (false)."""
    seed: NotRequired[Annotated[int, Field(ge=0, lt=2**SEED_BITS)]]
    """Seed of a stochastic answer; one is drawn and echoed where none is given."""


class Action(TypedDict):
    """CARLA's `VehicleControl`: throttle and brake in [0, 1], steer in [-1, 1], positive to the right."""

    throttle: Annotated[float, Field(ge=0.0, le=1.0)]
    brake: Annotated[float, Field(ge=0.0, le=1.0)]
    steer: Annotated[float, Field(ge=-1.0, le=1.0)]


class InterventionNote(TypedDict):
    """The action of observation number `observation` is not the policy's own: `kind` says what was done."""

    observation: int
    kind: str


class PredictAnswer(TypedDict):
    """Answer to a prediction: one action for each observation, in order."""

    actions: list[Action]
    version: str
    timingMs: float
    deterministic: bool
    seed: NotRequired[int]
    interventions: NotRequired[list[InterventionNote]]


class ErrorAnswer(TypedDict):
    """Body of every answer with a status of 400 or more that the handler gives."""

    code: int
    type: str
    message: str
    details: list[ErrorDetail]
    requestId: str


@dataclass(frozen=True)
class Prediction:
    """A valid prediction request: observations `[rows, 2 + sensors]` float32, and the options."""

    observations: FloatArray
    deterministic: bool
    seed: int | None


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


def parse_prediction(body: bytes | bytearray, card: ModelCard) -> Prediction:
    """The request in `body`, held against the card's layout and limits; a `RequestError` names every field at fault."""
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
    return Prediction(_to_array(observations, card), request.get("deterministic", True), request.get("seed"))


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
    if loc[:1] in (("deterministic",), ("seed",)) and error["type"] != "missing":
        return InvalidOption
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
