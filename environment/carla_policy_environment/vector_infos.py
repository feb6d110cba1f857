"""The infos of several environments as one, as Gymnasium's vector environments have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FINAL_OBSERVATION, FINAL_INFO = "final_obs", "final_info"
"""Gymnasium's names for what an episode ended with, where the same step already began another."""


def batch_infos(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The infos of N environments as Gymnasium's vector environments return them.

    Each key has an array of N values, and `_key` a mask that says which environments have it. What is no number, or is
    of another type or shape in another environment, is in an array of objects. Dictionaries are batched by key.
    """
    batched: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        mask = np.array([key in info for info in infos])
        values = [info[key] for info in infos if key in info]
        if key != FINAL_OBSERVATION and all(isinstance(value, Mapping) for value in values):
            batched[key] = batch_infos([info.get(key, {}) for info in infos])
        else:
            batched[key] = _batch(key, values, mask)
        batched[f"_{key}"] = mask
    return batched


def _batch(key: str, values: list[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    forms = {(type(value), getattr(value, "shape", ()), getattr(value, "dtype", None)) for value in values}
    kind, shape, dtype = next(iter(forms))
    number = issubclass(kind, bool | int | float | np.number | np.bool_ | np.ndarray)
    if key == FINAL_OBSERVATION or len(forms) > 1 or not number:
        objects = np.full(len(mask), None, dtype=object)
        for index, value in zip(np.flatnonzero(mask), values, strict=True):
            objects[index] = value
        return objects
    array = np.zeros((len(mask), *shape), dtype or kind)
    array[mask] = values
    return array
