"""The table's row about `.npy` bodies: what is no array of observations to the version that is asked."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.hostile.subject import Subject

NPY = {"content-type": "application/x-npy"}
ArrayTable = dict[str, tuple[int, str, Sequence[Callable[[Subject], bytes]]]]
"""Class -> status, type, bodies."""


def saved(array: Any, **options: Any) -> bytes:
    """What `numpy.save` writes of `array`."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def headed(shape: str, content: bytes = b"", *, descr: str = "'<f4'", order: str = "False") -> bytes:
    """A file whose header says what is given here, whatever follows it."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def _rows(subject: Subject, count: int = 3) -> np.ndarray:
    return np.ascontiguousarray(subject.rows[:count], np.float32)


def _changed(subject: Subject, value: float) -> bytes:
    rows = _rows(subject).copy()
    rows[1, 2] = value
    return saved(rows)


WRONG_ARRAYS: ArrayTable = {
    "no array": (400, "INVALID_NPY", [lambda s: s.good(), lambda _: b"\x93NUMPY", lambda _: b"\x93NUMPY\x01\x00\xff"]),
    "other version of the format": (
        400,
        "INVALID_NPY",
        [
            lambda s, v=version: b"\x93NUMPY" + v + saved(_rows(s))[8:]
            for version in (b"\x09\x00", b"\x00\x00", b"\x01\x07")
        ],
    ),
    "truncated": (
        400,
        "INVALID_NPY",
        [lambda s: saved(_rows(s))[:-1], lambda s: saved(_rows(s))[:130], lambda s: saved(_rows(s))[:9]],
    ),
    "trailing bytes": (
        400,
        "INVALID_NPY",
        [lambda s: saved(_rows(s)) + b"\0", lambda s: saved(_rows(s)) * 2, lambda s: saved(_rows(s)) + b"\n"],
    ),
    "header longer than the file": (
        400,
        "INVALID_NPY",
        [
            lambda _: b"\x93NUMPY\x01\x00\xff\xff{}",
            lambda _: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'",
            lambda s: b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + saved(_rows(s))[10:],
        ],
    ),
    "header that is no description": (
        400,
        "INVALID_NPY",
        [
            lambda _: headed("(1, 7), 'extra': 1"),
            lambda _: headed("__import__('os').getpid()"),
            lambda _: headed("(" * 3_000 + ")" * 3_000),
            lambda _: headed("(1, 7)", descr="'<f4', 'descr': '<f4'", order="'no'"),
            lambda _: headed("(1, 7)", descr="'nothing'"),
            lambda _: headed("[1, 7]"),
        ],
    ),
    "pickled objects": (
        422,
        "SCHEMA",
        [
            lambda s: saved(np.array([[None] * (s.sensors + 2)], object)),
            lambda s: saved(_rows(s).astype(object)),
            lambda s: headed(f"(1, {s.sensors + 2})", b"cos\nsystem\n(S'true'\ntR.", descr="'|O'"),
        ],
    ),
    "other type of number": (
        422,
        "SCHEMA",
        [
            lambda s, kind=kind: saved(_rows(s).astype(kind))
            for kind in (np.float64, ">f4", np.float16, np.int32, np.bool_, "S4", "c8")
        ],
    ),
    "record": (
        422,
        "SCHEMA",
        [
            lambda s: saved(np.zeros((1, s.sensors + 2), [("a", "<f4")])),
            lambda s: saved(np.zeros((1, s.sensors + 2), [("a", "<f4"), ("b", "<f4")])),
            lambda s: saved(np.zeros((1, s.sensors + 2), "V4")),
        ],
    ),
    "other shape": (
        422,
        "SHAPE",
        [
            lambda s: saved(_rows(s)[0]),
            lambda s: saved(_rows(s)[:, :-1]),
            lambda s: saved(_rows(s)[None]),
            lambda s: saved(_rows(s).T[:-1].copy()),
            lambda _: saved(np.float32(1.0)),
            lambda s: saved(_rows(s, 0)),
        ],
    ),
    "more rows than the limit": (
        422,
        "BATCH_TOO_LARGE",
        [
            lambda s, k=k: saved(np.zeros((s.card.inference.max_observations + k, s.sensors + 2), "<f4"))
            for k in (1, 2, 99)
        ],
    ),
    "outside the bounds": (
        422,
        "OUT_OF_RANGE",
        [lambda s, v=value: _changed(s, v) for value in (np.nan, np.inf, -np.inf, 1e6, 3e38)],
    ),
}

HUGE_SHAPES = [
    lambda s: headed(f"({10**15}, {s.sensors + 2})"),
    lambda s: headed(f"({2**62}, {s.sensors + 2})", bytes(28)),
    lambda _: headed("(1000000, 1000000, 1000000)"),
    lambda s: headed(f"(-1, {s.sensors + 2})", bytes(28)),
    lambda s: headed(f"({10**400 // 10**200}, {s.sensors + 2})"),
]
"""Announce more than there is memory for, or less than nothing."""
