"""Episodes of a source in its environment: what the golden vectors, the ranges and the closed loop are made of."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from carla_policy.golden import FloatArray
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.source import Source

MAX_STEPS = 2_000
"""Of one episode, for environments that never end."""


@dataclass(frozen=True)
class Rollouts:
    """Observations `[rows, columns]` in order, the `episode` `[rows]` of each, and the `states` before them."""

    observations: FloatArray
    episode: NDArray[np.int64]
    states: FloatArray | None
    metrics: dict[str, float | int]
    rounding: float = 0.0
    """How far actions are from those for observations that were not rounded to float32."""


@dataclass(frozen=True)
class Visit:
    """One step of an episode: what the policy saw and kept, and the reward that followed.

    `rounding` is how far its action is from that for the observation before it was rounded to float32.
    """

    observation: FloatArray
    state: FloatArray | None
    reward: float
    rounding: float


def roll_out(
    source: Source, make: Callable[[], Environment], *, rows: int, episodes: int, progress: Callable[[int], None]
) -> Rollouts:
    """At least `rows` observations of at least `episodes` seeded episodes.

    Every second episode is explored with sampled actions; the metrics are those of the deterministic ones.
    """
    import torch

    env = make()
    env.check(source)
    torch.manual_seed(0)
    np.random.seed(0)
    collected: list[FloatArray] = []
    states: list[FloatArray] = []
    numbers: list[int] = []
    returns, lengths = [], []
    episode, rounding = 0, 0.0
    while len(collected) < rows or episode < episodes:
        total, length = 0.0, 0
        for visit in _episode(source, env, seed=episode, explore=episode % 2 == 1):
            collected.append(visit.observation)
            numbers.append(episode)
            if visit.state is not None:
                states.append(visit.state)
            rounding = max(rounding, visit.rounding)
            total, length = total + visit.reward, length + 1
        if episode % 2 == 0:
            returns.append(total)
            lengths.append(length)
        episode += 1
        progress(len(collected))
    env.close()
    return Rollouts(
        np.stack(collected),
        np.array(numbers),
        np.stack(states) if states else None,
        {
            "episodes": len(returns),
            "mean_return": round(float(np.mean(returns)), 3),
            "std_return": round(float(np.std(returns, ddof=min(len(returns) - 1, 1))), 3),
            "mean_episode_length": round(float(np.mean(lengths)), 2),
        },
        rounding,
    )


def _episode(source: Source, env: Environment, *, seed: int, explore: bool) -> Iterator[Visit]:
    observation = env.reset(seed)
    state = source.initial_state()
    for _ in range(MAX_STEPS):
        flat = observation.astype(np.float32)
        prediction = source.predict(flat, state)
        rounding = 0.0
        if observation.dtype != np.float32:
            exact = source.predict(observation, state).action
            rounding = float(np.abs(exact.astype(np.float64) - prediction.action).max())
        action = source.explore(flat, state) if explore else prediction.action
        observation, reward, over = env.step(action)
        yield Visit(flat, state, reward, rounding)
        state = prediction.next_state
        if over:
            return


def load_observations(path: Path, source: Source) -> Rollouts:
    """Recorded observations: an `.npz` with `observations` `[rows, columns]`, or an `.npy` of them.

    `episode_starts` `[rows]`, where the file has it, says where episodes begin; a recurrent policy is run through
    them, and held-out rows are whole episodes.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"observations": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path}: cannot be read as an .npz or .npy file of plain arrays: {error}") from None
    if "observations" not in arrays:
        raise ExportError(f"{path}: expected an array named observations, got {', '.join(sorted(arrays)) or 'none'}")
    observations = arrays["observations"]
    if (
        observations.ndim < 2
        or not len(observations)
        or observations[0].size != source.columns
        or observations.dtype.kind != "f"
    ):
        raise ExportError(
            f"{path}: observations: expected floating-point numbers [rows, {source.columns}] as the environment gives "
            f"them, before any normalisation; got {observations.dtype} {observations.shape}"
        )
    observations = observations.reshape(len(observations), -1).astype(np.float32)
    bad = np.argwhere(~np.isfinite(observations))
    if len(bad):
        row, column = bad[0]
        raise ExportError(
            f"{path}: observations[{row}, {column}]: expected a finite number, got {observations[row, column]}"
        )
    starts = np.asarray(arrays.get("episode_starts", np.arange(len(observations)) == 0), np.bool_)
    if starts.shape != (len(observations),):
        raise ExportError(
            f"{path}: episode_starts: expected one for each of {len(observations)} rows, got {starts.shape}"
        )
    episode = np.cumsum(starts, dtype=np.int64)
    return Rollouts(observations, episode, _states(source, observations, starts), {})


def _states(source: Source, observations: FloatArray, starts: NDArray[np.bool_]) -> FloatArray | None:
    if not source.state_size:
        return None
    states, state = [], source.initial_state()
    for observation, start in zip(observations, starts, strict=True):
        state = source.initial_state() if start else state
        assert state is not None
        states.append(state)
        state = source.predict(observation, state).next_state
    return np.stack(states)
