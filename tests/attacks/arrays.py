"""`.npz` files that hide objects, claim or grow to sizes beyond memory, or say two things at once."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks import Attack

FILE, STATISTICS = "golden.npz", "ood.npz"


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _header(descr: str, shape: str, content: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content


def _add(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Callable[[Path, Path], None]:
    def apply(file: Path, _: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as packed:
            warnings.simplefilter("ignore")  # of a name that is there already
            packed.writestr(name, content, compression)

    return apply


def _pickle(file: Path, marker: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    np.savez(file, observations=np.array([Payload()], object))


def _zeros(file: Path, _: Path) -> None:
    """160 MiB of them, where 128 are the most."""
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed, packed.open("z.npy", "w") as member:
        member.write(_header("'<f8'", f"({20 << 20},)"))
        for _block in range(160):
            member.write(bytes(1 << 20))


def _broken_stream(file: Path, _: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("observations.npy", _npy(np.arange(1000.0)))
    data = bytearray(file.read_bytes())
    data[46:60] = bytes(14)
    file.write_bytes(data)


def _million(file: Path, _: Path) -> None:
    """A list of a million arrays that are not there."""
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(record) * 10**6, 0, 0)
    file.write_bytes(record * 10**6 + end)


def _around(before: bytes = b"", behind: bytes = b"") -> Callable[[Path, Path], None]:
    return lambda file, _: _write(file, before + file.read_bytes() + behind)


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def _arrays(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def apply(file: Path, _: Path) -> None:
        content = {name: array.copy() for name, array in np.load(file).items()}
        change(content)
        np.savez(file, **content)

    return apply


def _value(name: str, place: tuple[int, ...], value: float) -> Callable[[Path, Path], None]:
    return _arrays(lambda content: content[name].__setitem__(place, value))


PLAIN = r"cannot be read as an \.npz file of plain arrays"
CONTAINERS = [
    ("pickled object", _pickle, PLAIN),
    ("raw pickle as member", _add("x.npy", b"\x80\x04cos\nsystem\n."), PLAIN),
    ("object type in a header", _add("x.npy", _header("'|O'", "(1,)", bytes(8))), PLAIN),
    ("huge shape", _add("x.npy", _header("'<f8'", f"({1 << 50},)")), PLAIN),
    ("huge shape of nothing", _add("x.npy", _header("'|S0'", f"({1 << 33},)")), PLAIN),
    ("negative shape", _add("x.npy", _header("'<f8'", "(-1, -4)", bytes(32))), "is no plain array of 32 bytes"),
    ("bytes behind the numbers", _add("x.npy", _npy(np.zeros(3)) + b"x"), "is no plain array of 25 bytes"),
    ("deep header", _add("x.npy", _header("(" * 3000, "()")), PLAIN),
    ("compressed zeros", _zeros, "need more than 128 MiB"),
    ("broken compression", _broken_stream, PLAIN),
    ("list of a million arrays", _million, "expected at most 1000 files"),
    ("data in front", _around(before=b"#!/bin/sh\n"), "something before or behind it"),
    ("data behind", _around(behind=b"PK"), "something behind it"),
    ("stranger", _add("more.npy", _npy(np.zeros(3))), "expected the arrays"),
]
BOMBS = ("compressed zeros", "huge shape", "huge shape of nothing", "deep header", "list of a million arrays")


def _of(file: str, attacks: list[tuple[str, Callable[[Path, Path], None], str]]) -> list[Attack]:
    def on(change: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        return lambda directory, marker: change(directory / file, marker)

    return [Attack(name, on(change), refusal) for name, change, refusal in attacks]


TWICE = "observations': stands twice"
ATTACKS = _of(
    FILE,
    [
        *CONTAINERS,
        ("array twice", _add("observations.npy", _npy(np.zeros(3))), TWICE),
        ("array twice under two names", _add("observations", _npy(np.zeros(3))), TWICE),
        ("NaN", _value("observations", (3, 1), np.nan), r"observations\[3, 1\]: expected a finite number, got nan"),
        ("infinity", _value("mean", (3, 1), np.inf), r"mean\[3, 1\]: expected a finite number, got inf"),
    ],
)
OF_STATISTICS = _of(
    STATISTICS,
    [
        *CONTAINERS,
        ("array twice", _add("mean.npy", _npy(np.zeros(3))), "mean': stands twice"),
        ("NaN", _value("whitening", (2, 1), np.nan), r"whitening: expected finite numbers, but \[2, 1\] is nan"),
        ("infinity", _value("mean", (3,), -np.inf), r"mean: expected finite numbers, but \[3\] is -inf"),
        (
            "other type",
            _arrays(lambda c: c.update(mean=c["mean"].astype(np.float32))),
            r"mean: expected float64 .* got",
        ),
        ("more features", _arrays(lambda c: c.update(mean=np.zeros(1000))), "mean: expected float64"),
        ("no component", _arrays(lambda c: c.update(whitening=c["whitening"][:0])), "whitening: expected float64"),
        (
            "other dimensions",
            _arrays(lambda c: c.update(whitening=c["whitening"][None])),
            "whitening: expected float64",
        ),
        ("complex numbers", _arrays(lambda c: c.update(mean=c["mean"] * 1j)), "mean: expected float64"),
    ],
)
