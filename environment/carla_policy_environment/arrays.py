"""NumPy arrays as JSON, with the same bits on both sides.

Any array has the explicit form `{"dtype": "uint8", "shape": [2, 3], "data": "<base64>"}`: its bytes in C order, little
endian. Numbers in JSON have no NaN and no infinity; the explicit form has both.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
EXPLICIT_KEYS = frozenset(["dtype", "shape", "data"])
MAX_DIMENSIONS = 32


def array_to_json(array: NDArray[Any]) -> dict[str, Any]:
    """The explicit form of an array of any shape; `TypeError` if it does not consist of numbers of a common type."""
    if array.dtype.name not in DTYPES:
        raise TypeError(f"arrays of {array.dtype} cannot be sent, only of {', '.join(sorted(DTYPES))}")
    data = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(data).decode()}


def is_explicit(content: Any) -> bool:
    """Whether `content` is an object with just the keys of the explicit form."""
    return isinstance(content, Mapping) and content.keys() == EXPLICIT_KEYS


def array_from_json(content: Mapping[str, Any]) -> NDArray[Any]:
    """The array that `array_to_json` made `content` of; `ValueError` says what is wrong with it."""
    dtype, shape, data = content["dtype"], content["shape"], content["data"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(sorted(DTYPES))}, got {dtype!r}")
    sizes_are_right = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes_are_right or len(shape) > MAX_DIMENSIONS:
        raise ValueError("shape: expected a list of at most 32 sizes")
    if not isinstance(data, str):
        raise ValueError("data: expected base64 text")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"data: expected base64 text: {error}") from None
    kind = np.dtype(dtype)
    expected = math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise ValueError(f"data: {dtype} of shape {shape} has {expected} bytes, got {len(raw)}")
    return np.frombuffer(raw, kind.newbyteorder("<")).astype(kind).reshape(shape)
