"""Compares observations and infos by their bits: dictionaries, tuples, arrays and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def leaves(value: Any) -> Iterator[Any]:
    """The values that are no containers, dictionaries in the order of their keys' names."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield key
            yield from leaves(value[key])
    elif isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.dtype == object):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def bits(value: Any) -> bytes:
    """What two values have in common if and only if they have the same structure, types, shapes and bits."""
    parts = []
    for leaf in leaves(value):
        if isinstance(leaf, np.ndarray | np.generic | int | float):
            array = np.asarray(leaf)
            parts += [array.dtype.str.encode(), repr(array.shape).encode(), array.tobytes()]
        else:
            parts.append(repr(leaf).encode())
    return b"\0".join(parts)


def largest_difference(a: Any, b: Any) -> float:
    """0 where both have the same bits, else the largest difference of two elements; infinity for another structure."""
    if bits(a) == bits(b):
        return 0.0
    pairs = list(zip(leaves(a), leaves(b), strict=False))
    largest = float(np.finfo(np.float64).tiny)
    for left, right in pairs:
        if isinstance(left, str) or isinstance(right, str):
            if left != right:
                return float("inf")
            continue
        if np.shape(left) != np.shape(right):
            return float("inf")
        difference = np.abs(np.asarray(left, np.float64) - np.asarray(right, np.float64))
        largest = max(largest, float(difference.max(initial=0.0)))
    return largest
