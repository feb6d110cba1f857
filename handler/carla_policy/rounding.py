"""Where rounding to float32 takes a number, without rounding it."""

from __future__ import annotations

import math

import numpy as np


def outermost(bound: np.float32, direction: float) -> float:
    """The farthest number in `direction` (-1.0 or 1.0) that float32 rounds to `bound`.

    Rounding keeps the order of numbers. So those that end on this side of `bound` are those on this side of the result,
    and all numbers can be held against it before they are rounded, when none of them can overflow.
    """
    with np.errstate(over="ignore"):
        beyond = np.nextafter(bound, np.float32(direction * np.inf))
        if np.isinf(beyond):
            step = float(bound) - float(np.nextafter(bound, np.float32(0.0)))
        else:
            step = float(beyond) - float(bound)
        halfway = float(bound) + step / 2.0  # a tie goes to the even of the two
        return halfway if np.float32(halfway) == bound else math.nextafter(halfway, float(bound))
