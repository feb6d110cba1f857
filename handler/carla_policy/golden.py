"""Golden vectors: real observations from rollouts, and what the *training side* computed from them.

`golden.npz` holds, for N >= 256 rows:

| array | shape, type | meaning |
| --- | --- | --- |
| `observations` | `[N, 2 + sensors]` float32 | speed, steering, sensors |
| `features` | `[N, features]` float32 | the preprocessor's output, as the network saw it |
| one per head parameter | `[N, dims]` float32 | `mean`, `log_std` (or `std`); `action`; `alpha`, `beta` |
| or of a discrete head | `[N, choices]` float32 | `logits`, or `q_values` |
| `deterministic_actions` | `[N, dims]` float32 | the framework's own deterministic prediction, within its bounds |
| `seeds` | `[N]` uint64 | seed of a one-row stochastic request |
| `sampled_actions` | `[N, dims]` float32 | the action sampled with that seed, within its bounds |

A discrete action is one column, `dims` = 1: the number of its row in the card's table. Recurrent policies add
`states` and `next_states`, each `[N, state_size]` float32: what the network kept before and after the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.arrays import load_arrays
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
    states: FloatArray | None = None
    next_states: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.observations)

    def rows(self, mask: NDArray[np.bool_]) -> GoldenVectors:
        """The vectors that `mask` `[N]` chooses."""
        return GoldenVectors(
            observations=self.observations[mask],
            features=self.features[mask],
            parameters={name: values[mask] for name, values in self.parameters.items()},
            deterministic_actions=self.deterministic_actions[mask],
            seeds=self.seeds[mask],
            sampled_actions=self.sampled_actions[mask],
            states=None if self.states is None else self.states[mask],
            next_states=None if self.next_states is None else self.next_states[mask],
        )


def load_golden(
    path: Path, *, columns: int, dims: int, parameter_width: int, parameter_names: Sequence[str], state_size: int = 0
) -> GoldenVectors:
    """Read and check `path`; `ArtifactError` names file, array, what was expected and the first bad value."""
    name = path.name
    arrays = load_arrays(path)
    actions, states = ("deterministic_actions", "sampled_actions"), ("states", "next_states") if state_size else ()
    expected = {"observations", "features", "seeds", *actions, *parameter_names, *states}
    if arrays.keys() != expected:
        raise ArtifactError(f"{name}: expected the arrays {sorted(expected)}, got {sorted(arrays)}")
    rows = len(arrays["observations"]) if arrays["observations"].ndim else 0
    if rows < MIN_ROWS:
        raise ArtifactError(f"{name}: observations: expected at least {MIN_ROWS} rows, got {rows}")
    features = arrays["features"].shape[-1] if arrays["features"].ndim == 2 else 0
    shapes: dict[str, tuple[int, ...]] = {"observations": (rows, columns), "features": (rows, features)}
    shapes |= {"seeds": (rows,), **dict.fromkeys(actions, (rows, dims))}
    shapes |= {**dict.fromkeys(parameter_names, (rows, parameter_width)), **dict.fromkeys(states, (rows, state_size))}
    for key, shape in shapes.items():
        _check_array(name, key, arrays[key], shape, np.dtype(np.uint64 if key == "seeds" else np.float32))
    return GoldenVectors(
        observations=arrays["observations"],
        features=arrays["features"],
        parameters={key: arrays[key] for key in parameter_names},
        deterministic_actions=arrays["deterministic_actions"],
        seeds=arrays["seeds"],
        sampled_actions=arrays["sampled_actions"],
        states=arrays.get("states"),
        next_states=arrays.get("next_states"),
    )


def _check_array(name: str, key: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype or array.shape != shape or 0 in shape:
        raise ArtifactError(f"{name}: {key}: expected {dtype} {shape}, got {array.dtype} {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(position) for position in bad[0])
        raise ArtifactError(f"{name}: {key}{list(index)}: expected a finite number, got {array[index]}")
