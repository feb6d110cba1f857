"""A drive in simulated time whose actions come late, or never: exact, seeded, and as fast as the simulation.

The answer to the observation at time t takes effect at t + latency; until then the vehicle keeps what it had, zero
controls at the start. Observations are made at every step whatever is under way, so answers overlap where the latency
exceeds a step. A lost answer is noticed at t + deadline, and so is one that would be later than that: then the fallback
acts, unless an answer to a newer observation has arrived. Times are rounded up to what the environment resolves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from carla_policy.golden import FloatArray
from carla_policy_tools.driving.defaults import DEADLINE_S
from carla_policy_tools.driving.pilots import Pilot
from carla_policy_tools.driving.records import Answer, Episode, Step
from carla_policy_tools.driving.simulation import Simulation

Fallback = Callable[[FloatArray | None, float], FloatArray]
"""Controls `[3]`, from the last good ones (`None` before the first) and how many seconds ago they took effect."""
_LOSSES = 0x1055
"""Keeps the losses of an episode apart from whatever else is drawn from its seed."""


@dataclass(frozen=True)
class Delay:
    """Seconds of latency, the share of answers that are lost, and after how many seconds an answer counts as lost."""

    latency_s: float = 0.0
    loss: float = 0.0
    deadline_s: float = DEADLINE_S

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s < math.inf or not 0 <= self.deadline_s < math.inf:
            raise ValueError(f"expected seconds from 0 on, got latency {self.latency_s}, deadline {self.deadline_s}")
        if not 0 <= self.loss <= 1:
            raise ValueError(f"expected a share of lost answers from 0 to 1, got {self.loss}")

    @property
    def needs_fallback(self) -> bool:
        return self.loss > 0 or self.latency_s > self.deadline_s


@dataclass(frozen=True)
class Clock:
    """Simulated time in whole ticks: `parts` of them are a step of `step_s` seconds."""

    step_s: float
    parts: int = 1

    @classmethod
    def of(cls, simulation: Simulation, step_s: float | None = None) -> Clock:
        """As finely as `simulation` resolves; `step_s` for one that does not say how long its steps are."""
        own, part_s = simulation.step_s, simulation.substep_s
        if own is None and step_s is None:
            raise ValueError(f"{simulation.name} says neither step_s nor render_fps: name the length of a step")
        if step_s is not None and own is not None and not math.isclose(own, step_s):
            raise ValueError(f"{simulation.name} has steps of {own:g} s, not {step_s:g} s")
        whole = own or step_s
        assert whole is not None
        if not 0 < whole < math.inf:
            raise ValueError(f"expected a step of more than 0 s, got {whole:g}")
        return cls(whole, round(whole / part_s) if part_s else 1)

    @property
    def tick_s(self) -> float:
        return self.step_s / self.parts

    def ticks(self, seconds: float) -> int:
        """Rounded up; a rounding error of the division is no reason for another tick."""
        return math.ceil(seconds / self.tick_s - 1e-9)


@dataclass(frozen=True)
class _Due:
    """What is under way for the observation of step `number`: `answer`, or the notice that there is none."""

    tick: int
    number: int
    answer: Answer | None


class _Actuator:
    """What the vehicle executes, tick by tick."""

    def __init__(self, fallback: Fallback, tick_s: float) -> None:
        self.current = Answer(np.zeros(3, np.float32), reason="start")
        self._fallback, self._tick_s = fallback, tick_s
        self._under_way: list[_Due] = []
        self._newest = -1
        self._last_good: tuple[FloatArray, int] | None = None

    def expect(self, due: _Due) -> None:
        self._under_way.append(due)

    def at(self, tick: int) -> FloatArray:
        """The controls `[3]` from `tick` on; of what comes at the same time the newest observation's counts."""
        arrived = [due for due in self._under_way if due.tick <= tick]
        self._under_way = [due for due in self._under_way if due.tick > tick]
        for due in arrived:
            if due.number < self._newest:
                continue
            self._newest = due.number
            if due.answer is not None:
                self.current, self._last_good = due.answer, (due.answer.controls, tick)
            else:
                self.current = Answer(self._without_answer(tick), "fallback", "lost")
        return self.current.controls

    def _without_answer(self, tick: int) -> FloatArray:
        if self._last_good is None:
            return self._fallback(None, 0.0)
        controls, since = self._last_good
        return self._fallback(controls, (tick - since) * self._tick_s)


def drive_delayed(
    simulation: Simulation,
    pilot: Pilot,
    seed: int,
    delay: Delay,
    fallback: Fallback,
    clock: Clock,
    max_steps: int | None = None,
) -> Episode:
    """The episode of `seed`; each step's answer is the one that was in effect when it ended.

    Which answers are lost depends on `seed` alone: those of a smaller share are among those of a larger one.
    """
    chance = np.random.default_rng([seed, _LOSSES])
    actuator, episode = _Actuator(fallback, clock.tick_s), Episode(0, seed)
    latency, deadline = clock.ticks(delay.latency_s), clock.ticks(delay.deadline_s)
    pilot.begin()
    row = simulation.reset(seed)
    while not episode.ending and len(episode.steps) != max_steps:
        number, place, speed = len(episode.steps), simulation.position, simulation.speed
        start = number * clock.parts
        answer = replace(pilot.act(row), latency_s=delay.latency_s)
        is_lost = chance.random() < delay.loss or latency > deadline
        actuator.expect(_Due(start + deadline, number, None) if is_lost else _Due(start + latency, number, answer))
        controls = np.stack([actuator.at(start + part) for part in range(clock.parts)])
        transition = simulation.step_in_parts(controls)
        time_s, reward = number * clock.step_s, transition.reward
        episode.steps.append(Step(time_s, row, actuator.current, reward, position=place, speed=speed))
        row, episode.ending = transition.row, transition.ending
    episode.ending = episode.ending or "max_steps"
    return episode
