"""Read arrays of plain numbers: `.npz` files, the form in which they travel in an artifact, and the header of `.npy`.

Nothing is unpickled, and nothing is allocated on the word of a header: what it claims must be there.
"""

from __future__ import annotations

import io
import math
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.zips import check_zip_end

MAX_BYTES = 128 << 20
"""Of a file, and of all arrays in it together: what a small compressed file may grow to."""
MAX_ARRAYS = 1_000
MAX_HEADER_CHARACTERS = 512
"""What numpy writes for plain numbers takes 118; the reader of headers evaluates them as a Python literal."""
_HEADER_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


every = partial(np.logical_and.reduce, axis=None)
some = partial(np.logical_or.reduce, axis=None)
"""Whether all, and whether any of an array is true: as numpy's `all` and `any`, without the detour through Python."""


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file by name, contiguous; nothing in it is unpickled. `ArtifactError` names the file."""
    return parse_arrays(read_file(path, MAX_BYTES), path.name)


def parse_arrays(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    """All arrays in `data`, an `.npz` file, by name, contiguous; `ArtifactError` begins with `name`."""
    try:
        check_zip_end(data, MAX_ARRAYS)
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            members = packed.infolist()
            names = [member.filename.removesuffix(".npy") for member in members]
            if len(set(names)) != len(names):
                raise ValueError(f"{next(key for key in names if names.count(key) > 1)!r:.80}: stands twice in it")
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise ValueError(f"its arrays need more than {MAX_BYTES >> 20} MiB")
            return {key: _array(key, packed.read(member)) for key, member in zip(names, members, strict=True)}
    except Exception as error:  # a foreign file may raise whatever zipfile, zlib and numpy run into
        raise ArtifactError(f"{name}: cannot be read as an .npz file of plain arrays: {error}") from None


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in column order, and type of the array whose `.npy` form `file` begins with.

    Raises `ValueError`, or whatever else the evaluation of a Python literal runs into.
    """
    version = npy_format.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"expected version 1.0 or 2.0 of the .npy format, got {version[0]}.{version[1]}")
    shape, is_fortran, dtype = _HEADER_READERS[version](file, MAX_HEADER_CHARACTERS)
    return shape, is_fortran, dtype


def first_not_finite(array: NDArray[Any]) -> str | None:
    """Index and value of the first number of `array` that is not finite, as an error tells it."""
    bad = np.argwhere(~np.isfinite(array))
    return f"{bad[0].tolist()} is {array[tuple(bad[0])]}" if len(bad) else None


def _array(name: str, data: bytes) -> NDArray[Any]:
    file = io.BytesIO(data)
    shape, is_fortran, dtype = read_header(file)
    given = len(data) - file.tell()
    if (
        dtype.hasobject
        or dtype.itemsize == 0
        or min(shape, default=0) < 0
        or dtype.itemsize * math.prod(shape) != given
    ):
        raise ValueError(f"{name!r:.80}: {dtype!s:.80} {shape} is no plain array of {given} bytes")
    values = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    return np.array(values, order="C")
