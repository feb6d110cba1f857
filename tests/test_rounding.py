"""Numbers are held against a bound before they are rounded: it must come to the same as rounding them first."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carla_policy.rounding import outermost

BOUNDS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LARGEST = float(np.finfo(np.float32).max)


@given(bound=BOUNDS, steps=st.integers(-4, 4), direction=st.sampled_from((-1.0, 1.0)))
@example(bound=LARGEST, steps=0, direction=1.0)
@example(bound=LARGEST, steps=1, direction=1.0)
@example(bound=-LARGEST, steps=0, direction=-1.0)
@example(bound=0.0, steps=0, direction=1.0)
def test_neighbours_of_the_outermost_number_are_told_apart_as_rounding_does(
    bound: float, steps: int, direction: float
) -> None:
    edge = outermost(np.float32(bound), direction)
    number = edge
    for _ in range(abs(steps)):
        number = math.nextafter(number, math.copysign(math.inf, steps))
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    if direction < 0:
        assert (number >= edge) == (rounded >= bound)
    else:
        assert (number <= edge) == (rounded <= bound)


@given(bound=BOUNDS, number=st.floats(allow_nan=True), direction=st.sampled_from((-1.0, 1.0)))
def test_any_number_is_told_apart_as_rounding_does(bound: float, number: float, direction: float) -> None:
    edge = outermost(np.float32(bound), direction)
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    within, expected = (number >= edge, rounded >= bound) if direction < 0 else (number <= edge, rounded <= bound)
    assert within == expected


@pytest.mark.parametrize(("bound", "direction", "expected"), [(1.0, 1.0, 1.0 + 2.0**-24), (1.0, -1.0, 1.0 - 2.0**-25)])
def test_a_tie_goes_to_the_even_number(bound: float, direction: float, expected: float) -> None:
    assert outermost(np.float32(bound), direction) == expected
