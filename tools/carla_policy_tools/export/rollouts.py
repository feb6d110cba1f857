"""Episodes of a source in its environment: what the golden vectors, the ranges and the closed loop are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.golden import FloatArray
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.imports import import_module
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


def make_env(name: str, arguments: str = "{}") -> Callable[[], Any]:
    """Makes the environment `name`: an id that Gymnasium knows, `module:id`, or `module:callable`."""
    try:
        import gymnasium
    except ImportError:
        raise ExportError("gymnasium is not installed: pip install 'carla-policy-serving[sb3]'") from None
    try:
        keywords = json.loads(arguments)
    except ValueError as error:
        raise ExportError(f"--env-arguments: expected a JSON object, got {arguments!r:.80}: {error}") from None
    module_name, _, rest = name.rpartition(":")
    factory = getattr(import_module(module_name), rest, None) if module_name else None
    env_id = rest if module_name else name

    def make() -> Any:
        try:
            return factory(**keywords) if factory else gymnasium.make(env_id, **keywords)
        except gymnasium.error.Error as error:
            raise ExportError(
                f"--env {name}: {error}; for an environment of your own name its module too, as `module:id` where the "
                "module registers it, or as `module:callable`"
            ) from None

    return make


def check_env(env: Any, source: Source) -> None:
    """`ExportError` unless `env` has observations and actions of the source's shapes."""
    shape = getattr(env.observation_space, "shape", None)
    if shape is None or int(np.prod(shape)) != source.columns:
        raise ExportError(f"--env: observations {env.observation_space}; the policy sees {source.columns} numbers")
    choices = getattr(env.action_space, "n", 0)
    dims = int(np.prod(env.action_space.shape)) if env.action_space.shape else 0
    if (int(choices), dims) != (source.action.choices, len(source.action.low)):
        raise ExportError(f"--env: actions {env.action_space} are not those of the policy")


def roll_out(
    source: Source, make: Callable[[], Any], *, rows: int, episodes: int, progress: Callable[[int], None]
) -> Rollouts:
    """At least `rows` observations of at least `episodes` seeded episodes.

    Every second episode is explored with sampled actions; the metrics are those of the deterministic ones.
    """
    import torch

    env = make()
    check_env(env, source)
    torch.manual_seed(0)
    np.random.seed(0)
    collected: list[FloatArray] = []
    states: list[FloatArray] = []
    numbers: list[int] = []
    returns, lengths = [], []
    episode = 0
    while len(collected) < rows or episode < episodes:
        total, length = 0.0, 0
        for observation, state, reward in _episode(source, env, seed=episode, explore=episode % 2 == 1):
            collected.append(observation)
            numbers.append(episode)
            if state is not None:
                states.append(state)
            total, length = total + reward, length + 1
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
    )


def _episode(
    source: Source, env: Any, *, seed: int, explore: bool
) -> Iterator[tuple[FloatArray, FloatArray | None, float]]:
    observation, _ = env.reset(seed=seed)
    state = source.initial_state()
    for _ in range(MAX_STEPS):
        flat = flatten(observation)
        prediction = source.predict(flat, state)
        action = source.explore(flat, state) if explore else prediction.action
        observation, reward, terminated, truncated, _ = env.step(env_action(env, action))
        yield flat, state, float(reward)
        state = prediction.next_state
        if terminated or truncated:
            return


def flatten(observation: Any) -> FloatArray:
    """An environment's observation as `[columns]` float32."""
    return np.asarray(observation, np.float32).reshape(-1)


def env_action(env: Any, action: FloatArray) -> Any:
    """`action` `[dims]` as `env` takes it."""
    if getattr(env.action_space, "n", 0):
        return int(action[0])
    return action.reshape(env.action_space.shape).astype(env.action_space.dtype)


def load_observations(path: Path, source: Source) -> Rollouts:
    """Recorded observations: an `.npz` with `observations` `[rows, columns]`, or an `.npy` of them.

    `episode_starts` `[rows]`, where the file has it, says where episodes begin; a recurrent policy is run through
    them, and held-out rows are whole episodes.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"observations": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded}
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path}: cannot be read as an .npz or .npy file of plain arrays: {error}") from None
    if "observations" not in arrays:
        raise ExportError(f"{path}: expected an array named observations, got {', '.join(sorted(arrays)) or 'none'}")
    observations = arrays["observations"]
    if observations.ndim < 2 or observations[0].size != source.columns or observations.dtype.kind != "f":
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
