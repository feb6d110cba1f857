"""Arguments that are what they should be, or an error that names them."""

from __future__ import annotations

import operator
from typing import Any

MAX_DEADLINE_S = 60.0
SEEDS = 2**64


def deadline(name: str, value: Any) -> float:
    """`value` as seconds above 0 and up to 60; `TypeError` or `ValueError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, got {value!r:.40}")
    if not 0.0 < value <= MAX_DEADLINE_S:
        raise ValueError(f"{name}: expected seconds above 0 and up to {MAX_DEADLINE_S:g}, got {value!r}")
    return float(value)


def integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`; numpy's integers are integers, too."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r:.40}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {number}")
    return number


def options(deterministic: Any, seed: Any) -> tuple[bool, int | None]:
    """How an action is chosen: the distribution's mode, or a sample, that a seed reproduces."""
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic: expected a bool, got {deterministic!r:.40}")
    return deterministic, None if seed is None else integer("seed", seed, 0, SEEDS - 1)
