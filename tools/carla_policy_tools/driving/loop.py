"""The control loop: observe, ask, act; as fast as possible, or in real time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from carla_policy_tools.driving.pilots import Pilot
from carla_policy_tools.driving.records import Episode, Step
from carla_policy_tools.driving.simulation import Simulation

FIRST_SEED = 10_000
"""Far from the seeds that policies are usually trained with."""


class Pace:
    """Periods of `period_s` seconds from now on, or none at all: then nothing waits and nothing is late."""

    def __init__(self, period_s: float | None = None) -> None:
        self._period_s = period_s
        self._started = self._due = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def wait(self) -> float:
        """Until the present period ends; by how many seconds that was missed. A missed one starts the next at once."""
        if self._period_s is None:
            return 0.0
        self._due += self._period_s
        remaining = self._due - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
            return 0.0
        self._due = time.perf_counter()
        return -remaining


def drive_episodes(
    simulation: Simulation, pilot: Pilot, seeds: Iterable[int], pace: Pace, max_steps: int | None = None
) -> Iterator[Episode]:
    """Drive the episode of each seed; yields each episode as soon as it is over."""
    for number, seed in enumerate(seeds):
        episode = Episode(number, seed)
        pilot.begin()
        row = simulation.reset(seed)
        while not episode.ending and len(episode.steps) != max_steps:
            began, place = pace.elapsed_s, simulation.position
            answer = pilot.act(row)
            transition = simulation.step(answer.controls)
            episode.steps.append(Step(began, row, answer, transition.reward, pace.wait(), place))
            row, episode.ending = transition.row, transition.ending
        yield episode
