"""The control loop: observe, ask, act; as fast as possible, or in real time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from carla_policy_tools.driving.pilots import Pilot
from carla_policy_tools.driving.records import Episode, Step
from carla_policy_tools.driving.simulation import Simulation


class Pace:
    """Periods of `period_s` seconds, or none at all: then nothing waits and nothing is late."""

    def __init__(self, period_s: float | None = None) -> None:
        self._period_s = period_s
        self._started = self._due = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def start(self) -> None:
        """The first period begins now: what went before, such as a simulator's reset, makes none late."""
        self._due = time.perf_counter()

    def wait(self) -> float:
        """Until the present period ends; by how many seconds that was missed. A missed one starts the next at once."""
        if self._period_s is None:
            return 0.0
        self._due += self._period_s
        remaining = self._due - time.perf_counter()
        if remaining > 0:
            time.sleep(remaining)
            return 0.0
        self._due -= remaining
        return -remaining


def drive_episodes(
    simulation: Simulation,
    pilot: Pilot,
    seeds: Iterable[int],
    pace: Pace,
    max_steps: int | None = None,
    *,
    on_step: Callable[[Episode], None] = lambda _: None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Episode]:
    """Drive the episode of each seed; yields each episode as soon as it is over.

    `on_step` sees the episode after each step. Once `is_stopping`, the episode is yielded as far as it has come, and
    no other begins.
    """
    for number, seed in enumerate(seeds):
        if is_stopping():
            return
        episode = Episode(number, seed)
        pilot.begin()
        row = simulation.reset(seed)
        pace.start()
        while not episode.ending and not is_stopping():
            began, place, speed = pace.elapsed_s, simulation.position, simulation.speed
            answer = pilot.act(row)
            asked = time.perf_counter()
            transition = simulation.step(answer.controls)
            simulated_s = time.perf_counter() - asked
            late_s = pace.wait()
            episode.steps.append(Step(began, row, answer, transition.reward, late_s, place, simulated_s, speed))
            row, episode.ending = transition.row, transition.ending
            if not episode.ending and len(episode.steps) == max_steps:
                episode.ending = "max_steps"
            on_step(episode)
        yield episode
