"""Read `.npz` files of plain arrays, the form in which numbers travel in an artifact."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from carla_policy.errors import ArtifactError

MAX_BYTES = 128 << 20
"""Of all arrays in a file together: what a small compressed file may grow to."""


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file by name, contiguous; nothing in it is unpickled. `ArtifactError` names the file."""
    try:
        with path.open("rb") as file:
            _check_members(file)
            with np.load(file, allow_pickle=False) as archive:
                return {key: np.ascontiguousarray(archive[key]) for key in archive.files}
    except Exception as error:  # a foreign file may raise whatever zipfile, zlib and numpy run into
        raise ArtifactError(f"{path.name}: cannot be read as an .npz file of plain arrays: {error}") from None


def first_not_finite(array: NDArray[Any]) -> str | None:
    """Index and value of the first number of `array` that is not finite, as an error tells it."""
    bad = np.argwhere(~np.isfinite(array))
    return f"{bad[0].tolist()} is {array[tuple(bad[0])]}" if len(bad) else None


def _check_members(file: BinaryIO) -> None:
    """Each array once, of a header that claims no more than its member holds, and all of them small enough."""
    with zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) != len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)}: stands twice in it")
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise ValueError(f"its arrays need more than {MAX_BYTES >> 20} MiB")
        for member, name in zip(members, names, strict=True):
            with packed.open(member) as content:
                version = np.lib.format.read_magic(content)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, dtype = read_header[version](content)
            if dtype.hasobject or dtype.itemsize * math.prod(shape) > member.file_size or dtype.itemsize == 0:
                raise ValueError(f"{name}: {dtype} {shape} is no plain array of {member.file_size} bytes")
    file.seek(0)
