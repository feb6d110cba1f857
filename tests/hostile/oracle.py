"""What a body must be answered with, decided without the code under test: Python's `json`, its hooks, and the card.

A body may have several faults, and which of them is reported is the implementation's choice; one of them it must be.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from carla_policy.card import ModelCard
from carla_policy.wire import max_body_bytes

STATUS = {
    **dict.fromkeys(["INVALID_JSON", "INVALID_ENCODING", "DUPLICATE_KEY", "EMPTY_BODY", "INVALID_NPY"], 400),
    "UNKNOWN_RESOURCE": 404,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    **dict.fromkeys(["SCHEMA", "SHAPE", "OUT_OF_RANGE", "BATCH_TOO_LARGE", "INVALID_OPTION", "INVALID_STATE"], 422),
}
MAX_DEPTH = 32
MAX_DIGITS = 4_300
WHITESPACE = b" \t\n\r"
_BOMS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_OPTIONS = {"deterministic": "INVALID_OPTION", "log_prob": "INVALID_OPTION"}


@dataclass
class Verdict:
    """Types of error that the answer may have; a 200 is right where there is none, or `either`."""

    faults: set[str] = field(default_factory=set)
    either: bool = False

    def allows(self, status: int, kind: str | None) -> bool:
        if status == 200:
            return self.either or not self.faults
        return kind in self.faults and STATUS[kind] == status


def verdict(body: bytes, card: ModelCard) -> Verdict:
    """What a POST of `body` as JSON to a policy that keeps no state must be answered with."""
    if not body.strip(WHITESPACE):
        return Verdict({"EMPTY_BODY"})
    text, faults = _decoded(body)
    if not body.strip():  # vertical tabs and form feeds, white to some and wrong in JSON
        faults.add("EMPTY_BODY")
    if len(body) > max_body_bytes(card):
        faults.add("BATCH_TOO_LARGE")
    if text is None:
        return Verdict(faults)
    try:
        document = _Reader(faults).read(text)
    except (ValueError, RecursionError):
        return Verdict(faults | {"INVALID_JSON"})
    if faults - {"BATCH_TOO_LARGE"}:
        return Verdict(faults)
    judged = _judged(document, card)
    return Verdict(judged.faults | faults, judged.either)


def _decoded(body: bytes) -> tuple[str | None, set[str]]:
    if body.startswith(_BOMS):
        return None, {"INVALID_ENCODING"}
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return None, {"INVALID_ENCODING"}
    # A NUL is no JSON; beside one of the first characters it is rather UTF-16 or UTF-32.
    return text, {"INVALID_ENCODING"} if b"\0" in body else set()


class _Reader:
    """Python's `json` with what it lets pass added to `faults`."""

    def __init__(self, faults: set[str]) -> None:
        self.faults = faults

    def read(self, text: str) -> Any:
        """The document; `ValueError` where even Python's `json` finds none."""
        if _SURROGATE.search(text) and not _is_encodable(text):
            self.faults.add("INVALID_ENCODING")
        depth = 0
        for character in _STRING.sub("", text):
            depth += (character in "[{") - (character in "]}")
            if depth > MAX_DEPTH:
                raise ValueError("too deep")
        return json.loads(
            text,
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            self.faults.add("DUPLICATE_KEY")
        return dict(pairs)

    def _constant(self, name: str) -> float:
        self.faults.add("INVALID_JSON")
        return float(name)

    def _float(self, digits: str) -> float:
        if not math.isfinite(float(digits)):
            self.faults.add("INVALID_JSON")
        return float(digits)

    def _int(self, digits: str) -> int:
        if len(digits.lstrip("-")) > MAX_DIGITS:
            self.faults.add("INVALID_JSON")
            return 0
        return int(digits)


def _is_encodable(text: str) -> bool:
    for match in _STRING.finditer(text):
        try:
            json.loads(match[0]).encode()
        except UnicodeEncodeError:
            return False
        except ValueError:
            continue
    return True


def _judged(document: Any, card: ModelCard) -> Verdict:
    if not isinstance(document, dict):
        return Verdict({"SCHEMA"})
    faults, either = set(), False
    known = {"observations", "deterministic", "seed", "log_prob", "state", "episode_start"}
    if not document.keys() <= known or "observations" not in document:
        faults.add("SCHEMA")
    for name, kind in _OPTIONS.items():
        if not isinstance(document.get(name, True), bool):
            faults.add(kind)
    seed = document.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**64:
        faults.add("INVALID_OPTION")
    observations = document.get("observations")
    faults.update(_observations_faults(observations, card))
    starts = document.get("episode_start", False)
    if "state" in document or not _are_booleans(starts):
        faults.add("INVALID_STATE")
    elif isinstance(starts, list) and isinstance(observations, list) and len(starts) != len(observations):
        either = not faults
        faults.add("INVALID_STATE")
    return Verdict(faults, either)


def _are_booleans(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and all(isinstance(item, bool) for item in value))


def _observations_faults(observations: Any, card: ModelCard) -> Iterator[str]:
    if not isinstance(observations, list):
        yield "SCHEMA"
        return
    if not observations:
        yield "SHAPE"
    if len(observations) > card.inference.max_observations:
        yield "BATCH_TOO_LARGE"
    for observation in observations:
        if not isinstance(observation, dict) or observation.keys() != {"speed", "steering", "sensors"}:
            yield "SCHEMA"
        if isinstance(observation, dict):
            yield from _observation_faults(observation, card)


def _observation_faults(observation: dict[str, Any], card: ModelCard) -> Iterator[str]:
    fields = card.observation.fields
    for column, name in enumerate(("speed", "steering")):
        value = observation.get(name, 0)
        yield from (
            _number_faults(value, fields[column].low, fields[column].high)
            if not isinstance(value, list)
            else ["SCHEMA"]
        )
    sensors = observation.get("sensors", [])
    if not isinstance(sensors, list):
        yield "SCHEMA"
        return
    if len(sensors) != len(fields) - 2:
        yield "SHAPE"
    for value, place in zip(sensors, [*fields[2:], *fields[-1:] * len(sensors)], strict=False):
        yield from _number_faults(value, place.low, place.high)


def _number_faults(value: Any, low: float, high: float) -> Iterator[str]:
    if isinstance(value, list):
        yield "SHAPE"
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield "SCHEMA"
    else:
        with np.errstate(over="ignore"):
            rounded = float(np.float32(value)) if abs(value) < 1e300 else math.inf
        if not low <= rounded <= high:
            yield "OUT_OF_RANGE"
