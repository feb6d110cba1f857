"""Read `.npz` files of plain arrays, the form in which numbers travel in an artifact."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.errors import ArtifactError


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file by name, contiguous; nothing in it is unpickled. `ArtifactError` names the file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: np.ascontiguousarray(archive[key]) for key in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path.name}: cannot be read as an .npz file of plain arrays: {error}") from None
