"""Bulk evaluation: observations and actions as `.npy` arrays, without a number being written out.

A request's body is a float32 array `[rows, 2 + sensors]` (speed, steering, sensors) in row or column order, as
`numpy.save` writes it; its options travel as headers. The answer's is a float32 array `[rows, 3]` (throttle, brake,
steer). Nothing is unpickled, and nothing is allocated on the word of a header: the body is its own memory.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from numpy.lib import format as npy_format

from carla_policy.arrays import read_header
from carla_policy.card import ModelCard
from carla_policy.errors import EmptyBody, InvalidNpy, InvalidOption, InvalidState, SchemaMismatch, ShapeMismatch
from carla_policy.golden import FloatArray
from carla_policy.heads import SEED_BITS
from carla_policy.prediction import Prediction, check_rows, within_bounds

DETERMINISTIC_HEADER, SEED_HEADER = "x-policy-deterministic", "x-policy-seed"


def parse_npy(body: bytes | bytearray, headers: Mapping[str, str], card: ModelCard) -> Prediction:
    """The request in `body` and `headers` (names in lower case); a `RequestError` says what does not fit."""
    if not body:
        raise EmptyBody("body: expected a .npy file of observations, got nothing; POST what numpy.save writes")
    if card.recurrent:
        raise InvalidState.at("state", "this version is recurrent and needs a state, which only JSON can carry", "form")
    observations = _read(bytes(body), card)
    return Prediction(
        observations=within_bounds(observations, card),
        deterministic=_deterministic(headers.get(DETERMINISTIC_HEADER)),
        seed=_seed(headers.get(SEED_HEADER)),
        binary=True,
    )


def dump_npy(controls: FloatArray) -> bytes:
    """`controls` `[rows, 3]` as a `.npy` file, version 1.0."""
    file = io.BytesIO()
    npy_format.write_array(file, np.ascontiguousarray(controls, "<f4"), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _read(body: bytes, card: ModelCard) -> FloatArray:
    file = io.BytesIO(body)
    try:
        shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # the header is read as a Python literal, which may fail in any way
        reason = str(error).partition("\n")[0]
        raise InvalidNpy(f"body: not a .npy file: {reason:.200}; send what numpy.save writes") from None
    columns = card.observation.columns
    if dtype != np.dtype("<f4"):
        raise SchemaMismatch.at("body", f"expected an array of little-endian float32, got {str(dtype)!r:.80}", "dtype")
    if len(shape) != 2 or shape[1] != columns:
        expected = f"[rows, {columns}] (speed, steering, {card.observation.sensors} sensors)"
        raise ShapeMismatch.at("body", f"expected an array {expected}, got {list(shape)!s:.80}", "shape")
    check_rows(shape[0], card)
    size, given = math.prod(shape) * dtype.itemsize, len(body) - file.tell()
    if given != size:
        raise InvalidNpy(f"body: its header announces {size} bytes of numbers, got {given}; send the whole file")
    values = np.frombuffer(body, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


def _deterministic(text: str | None) -> bool:
    choices = {None: True, "true": True, "false": False}
    value = text if text is None else text.strip().lower()
    if value not in choices:
        raise InvalidOption.at(DETERMINISTIC_HEADER, f"expected true or false, got {text!a:.40}", "bool")
    return choices[value]


def _seed(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.strip()
    # The digits of 2**64 - 1 are 20; int() would also take '1_0' and digits of other scripts.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and int(digits) < 2**SEED_BITS):
        raise InvalidOption.at(SEED_HEADER, f"expected a whole number from 0 to 2**64 - 1, got {text!a:.40}", "int")
    return int(digits)
