"""The closed loop: the source and the exported policy drive the same seeded episodes, step by step side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from carla_policy.golden import FloatArray
from carla_policy.policy import Policy
from carla_policy_tools.export.columns import WireColumns
from carla_policy_tools.export.environments import Environment
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.source import Source

EPISODES = 3
MAX_STEPS = 1_000
FIRST_SEED = 10_000
"""Far from the seeds that the golden vectors come from."""


@dataclass(frozen=True)
class ClosedLoop:
    episodes: int
    steps: int
    bit_equal_actions: float
    """Share of the source's steps at which both choose the same bits for the same observation."""
    max_abs_difference: float
    """Of their actions for the same observation."""
    same_trajectories: bool
    """Whether the export, driving for itself, came through the very same observations."""


def compare(source: Source, policy: Policy, columns: WireColumns, make: Callable[[], Environment]) -> ClosedLoop:
    """Drive both; `ExportError` at the first step whose actions differ by more than the card's tolerance.

    At every step the export is asked for the source's observation, which the tolerance is about: rounding that is
    within it may grow in an unstable environment. It also drives an environment of its own; where all actions had the
    same bits, all of that must too.
    """
    theirs, ours = make(), make()
    steps, equal, largest, same_trajectories = 0, 0, 0.0, True
    for episode in range(EPISODES):
        seed = FIRST_SEED + episode
        seen, own = theirs.reset(seed).astype(np.float32), ours.reset(seed).astype(np.float32)
        if seen.tobytes() != own.tobytes():
            raise ExportError(
                f"--env: two episodes of seed {seed} begin differently, and nothing could be compared; one that "
                "does not follow its seed can be recorded instead, see --observations"
            )
        state, own_state = source.initial_state(), policy.initial_state(1)
        for step in range(MAX_STEPS):
            prediction = source.predict(seen, state)
            answer, _ = _act(policy, columns, seen, None if state is None else state[None])
            difference = float(np.abs(answer.astype(np.float64) - prediction.action).max())
            if not difference <= policy.card.parity.atol:
                raise ExportError(
                    f"closed loop: episode {episode}, step {step}: the source acts {prediction.action.tolist()}, the "
                    f"export {answer.tolist()}; nothing was exported"
                )
            steps, largest = steps + 1, max(largest, difference)
            equal += answer.tobytes() == prediction.action.tobytes()
            state = prediction.next_state
            own_action, own_state = _act(policy, columns, own, own_state)
            observation, _, over = theirs.step(prediction.action)
            own_observation, _, own_over = ours.step(own_action)
            seen, own = observation.astype(np.float32), own_observation.astype(np.float32)
            same_trajectories &= seen.tobytes() == own.tobytes() and over == own_over
            if over or own_over:
                break
    ours.close()
    theirs.close()
    if equal == steps and not same_trajectories:
        raise ExportError(
            "closed loop: every action is the same, and yet the export came to other observations: either the "
            "environment does not follow its seed, or the policy's state is lost; nothing was exported"
        )
    return ClosedLoop(EPISODES, steps, equal / steps, largest, same_trajectories)


def _act(
    policy: Policy, columns: WireColumns, observation: FloatArray, state: FloatArray | None
) -> tuple[FloatArray, FloatArray | None]:
    wire = columns.arrange(observation[None])
    evaluation = policy.evaluate(wire, policy.preprocessor(wire), state)
    return policy.select(evaluation.parameters, deterministic=True, seed=0)[0], evaluation.next_state
