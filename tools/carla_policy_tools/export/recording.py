"""Golden vectors of a source: what its own framework computes, one observation at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.golden import FloatArray
from carla_policy_tools.export import reference
from carla_policy_tools.export.source import Source

GOLDEN_ROWS = 512


def choose_rows(rows: int, seed: int = 2026) -> NDArray[np.int64]:
    """Up to `GOLDEN_ROWS` row numbers of `rows`, spread at random, in order."""
    chosen = np.random.default_rng(seed).choice(rows, min(rows, GOLDEN_ROWS), replace=False)
    return np.sort(chosen)


def record(
    source: Source, observations: FloatArray, states: FloatArray | None, progress: Callable[[int], None]
) -> dict[str, NDArray[Any]]:
    """The arrays of `golden.npz` for `observations` `[rows, columns]` in the policy's own order of columns."""
    seeds = np.random.default_rng(2026).integers(2**64, size=len(observations), dtype=np.uint64)
    features = np.concatenate([source.features(row[None]) for row in observations])
    recorded: dict[str, list[FloatArray]] = {}

    def keep(name: str, value: FloatArray) -> None:
        recorded.setdefault(name, []).append(np.asarray(value, np.float32))

    for row, seed in enumerate(seeds):
        state = None if states is None else states[row]
        parameters = source.parameters(features[row], state)
        prediction = source.predict(observations[row], state)
        for name, values in parameters.items():
            keep(name, values)
        keep("deterministic_actions", prediction.action)
        keep("sampled_actions", source.bound(reference.sample(source.head, parameters, int(seed))))
        if prediction.next_state is not None:
            keep("next_states", prediction.next_state)
        progress(row + 1)
    arrays: dict[str, NDArray[Any]] = {name: np.stack(rows) for name, rows in recorded.items()}
    arrays |= {"observations": observations, "features": features, "seeds": seeds}
    return arrays if states is None else {**arrays, "states": states}
