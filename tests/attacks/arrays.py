"""`.npz` files that hide objects, claim or grow to sizes beyond memory, or say two things at once."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks import Attack

FILE = "golden.npz"


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _header(descr: str, shape: str, content: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content


def _add(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(directory / FILE, "a") as packed:
            warnings.simplefilter("ignore")  # of a name that is there already
            packed.writestr(name, content, compression)

    return apply


def _pickle(directory: Path, marker: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    np.savez(directory / FILE, observations=np.array([Payload()], object))


def _zeros(directory: Path, _: Path) -> None:
    with zipfile.ZipFile(directory / FILE, "a", zipfile.ZIP_DEFLATED) as packed, packed.open("z.npy", "w") as member:
        member.write(_header("'<f8'", f"({1 << 25},)"))
        for _block in range(1 << 8):
            member.write(bytes(1 << 20))


def _broken_stream(directory: Path, _: Path) -> None:
    with zipfile.ZipFile(directory / FILE, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("observations.npy", _npy(np.arange(1000.0)))
    data = bytearray((directory / FILE).read_bytes())
    data[46:60] = bytes(14)
    (directory / FILE).write_bytes(data)


def _value(name: str, value: float) -> Callable[[Path, Path], None]:
    def apply(directory: Path, _: Path) -> None:
        golden = dict(np.load(directory / FILE))
        golden[name] = golden[name].copy()
        golden[name][3, 1] = value
        np.savez(directory / FILE, **golden)

    return apply


PLAIN = r"cannot be read as an \.npz file of plain arrays"
ATTACKS = [
    Attack("pickled object", _pickle, PLAIN),
    Attack("raw pickle as member", _add("x.npy", b"\x80\x04cos\nsystem\n."), PLAIN),
    Attack("object type in a header", _add("x.npy", _header("'|O'", "(1,)", bytes(8))), PLAIN),
    Attack("huge shape", _add("x.npy", _header("'<f8'", f"({1 << 50},)")), PLAIN),
    Attack("huge shape of nothing", _add("x.npy", _header("'|S0'", f"({1 << 33},)")), PLAIN),
    Attack("negative shape", _add("x.npy", _header("'<f8'", "(-1, -4)", bytes(32))), "expected the arrays|" + PLAIN),
    Attack("deep header", _add("x.npy", _header("(" * 3000, "()")), PLAIN),
    Attack("compressed zeros", _zeros, "need more than 128 MiB"),
    Attack("broken compression", _broken_stream, PLAIN),
    Attack("array twice", _add("observations.npy", _npy(np.zeros(3))), "observations: stands twice"),
    Attack("array twice under two names", _add("observations", _npy(np.zeros(3))), "observations: stands twice"),
    Attack("stranger", _add("more.npy", _npy(np.zeros(3))), "expected the arrays"),
    Attack("NaN", _value("observations", np.nan), r"observations\[3, 1\]: expected a finite number, got nan"),
    Attack("infinity", _value("mean", np.inf), r"mean\[3, 1\]: expected a finite number, got inf"),
]
BOMBS = ("compressed zeros", "huge shape", "huge shape of nothing", "deep header")
