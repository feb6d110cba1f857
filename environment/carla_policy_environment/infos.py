"""What a simulator says beside its observation, as JSON: its `info`, which may hold anything.

Numbers and text stay what they are, NumPy's arrays and numbers that are not finite take the explicit form of `arrays`,
tuples become lists. What has no JSON form is left out and named, so that nobody misses it silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from carla_policy_environment.arrays import array_from_json, array_to_json, is_explicit
from carla_policy_environment.spaces import Location, location_text

MAX_DEPTH = 16


class _LeftOut(Exception):
    pass


def info_to_json(info: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """`info` as JSON, and where in it there were values that have no JSON form."""
    left_out: list[str] = []
    return _object(info, (), left_out), left_out


def info_from_json(content: Any) -> Any:
    """What `info_to_json` made `content` of: arrays are arrays again, numbers that are not finite NumPy's numbers."""
    if is_explicit(content):
        try:
            array = array_from_json(content)
        except ValueError:
            return dict(content)
        return array if array.ndim else array[()]
    if isinstance(content, Mapping):
        return {key: info_from_json(value) for key, value in content.items()}
    return [info_from_json(value) for value in content] if isinstance(content, list) else content


def _object(mapping: Mapping[Any, Any], loc: Location, left_out: list[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in mapping.items():
        at = (*loc, key if isinstance(key, str) else repr(key))
        try:
            if not isinstance(key, str):
                raise _LeftOut
            content[key] = _value(value, at, left_out)
        except _LeftOut:
            left_out.append(location_text(at))
    return content


def _value(value: Any, loc: Location, left_out: list[str]) -> Any:
    if len(loc) > MAX_DEPTH:
        raise _LeftOut
    if isinstance(value, np.generic) and value.dtype.kind in "biufU" and value.dtype.name != "longdouble":
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration of texts says its name otherwise
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else array_to_json(np.array(value, np.float64))
    if isinstance(value, np.ndarray):
        try:
            return array_to_json(value)
        except TypeError:
            raise _LeftOut from None
    if isinstance(value, Mapping):
        return _object(value, loc, left_out)
    if isinstance(value, list | tuple):
        return [_value(part, (*loc, index), left_out) for index, part in enumerate(value)]
    raise _LeftOut
