"""Golden vectors: real observations from rollouts, and what the *training side* computed from them.

`golden.npz` holds, for N >= 256 rows:

| array | shape, type | meaning |
| --- | --- | --- |
| `observations` | `[N, 2 + sensors]` float32 | speed, steering, sensors |
| `features` | `[N, features]` float32 | the preprocessor's output, as the network saw it |
| one per head parameter | `[N, dims]` float32 | for a Gaussian head: `mean`, `log_std` |
| `deterministic_actions` | `[N, dims]` float32 | the framework's own deterministic prediction, clipped |
| `seeds` | `[N]` uint64 | seed of a one-row stochastic request |
| `sampled_actions` | `[N, dims]` float32 | the action sampled with that seed, clipped |
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.errors import ArtifactError

MIN_ROWS = 256
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class GoldenVectors:
    observations: FloatArray
    features: FloatArray
    parameters: dict[str, FloatArray]
    deterministic_actions: FloatArray
    seeds: NDArray[np.uint64]
    sampled_actions: FloatArray

    def __len__(self) -> int:
        return len(self.observations)


def load_golden(path: Path, *, columns: int, dims: int, parameter_names: Sequence[str]) -> GoldenVectors:
    """Read and check `path`; `ArtifactError` names file, array, what was expected and the first bad value."""
    name = path.name
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.ascontiguousarray(archive[key]) for key in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ArtifactError(f"{name}: cannot be read as an .npz file of plain arrays: {error}") from None
    actions = ("deterministic_actions", "sampled_actions", *parameter_names)
    expected = {"observations", "features", "seeds", *actions}
    if arrays.keys() != expected:
        raise ArtifactError(f"{name}: expected the arrays {sorted(expected)}, got {sorted(arrays)}")
    rows = len(arrays["observations"]) if arrays["observations"].ndim else 0
    if rows < MIN_ROWS:
        raise ArtifactError(f"{name}: observations: expected at least {MIN_ROWS} rows, got {rows}")
    features = arrays["features"].shape[-1] if arrays["features"].ndim == 2 else 0
    shapes = {"observations": (rows, columns), "features": (rows, features), "seeds": (rows,)}
    shapes |= dict.fromkeys(actions, (rows, dims))
    for key, shape in shapes.items():
        _check_array(name, key, arrays[key], shape, np.dtype(np.uint64 if key == "seeds" else np.float32))
    return GoldenVectors(
        observations=arrays["observations"],
        features=arrays["features"],
        parameters={key: arrays[key] for key in parameter_names},
        deterministic_actions=arrays["deterministic_actions"],
        seeds=arrays["seeds"],
        sampled_actions=arrays["sampled_actions"],
    )


def _check_array(name: str, key: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype or array.shape != shape or 0 in shape:
        raise ArtifactError(f"{name}: {key}: expected {dtype} {shape}, got {array.dtype} {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(position) for position in bad[0])
        raise ArtifactError(f"{name}: {key}{list(index)}: expected a finite number, got {array[index]}")
