"""What a drive leaves: its episodes step by step, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from carla_policy.golden import FloatArray

SOURCES = ("policy", "fallback", "override")
ENDINGS = ("completed", "collision", "off_road", "terminated")


@dataclass(frozen=True)
class Answer:
    """Controls `[3]` for one observation, and where they came from.

    `source` is one of `SOURCES`; `reason` says why it was not the policy. `latency_s` is what the control loop waited.
    """

    controls: FloatArray
    source: str = "policy"
    reason: str = ""
    latency_s: float = 0.0
    interventions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One period of the control loop; `row` is what was observed at its start.

    `time_s` is when it began, from the start of the drive. `late_s` is by how much it ended after its period, 0 if in
    time or if nobody keeps time. `position` is where the vehicle was, in metres.
    """

    time_s: float
    row: FloatArray
    answer: Answer
    reward: float
    late_s: float = 0.0
    position: tuple[float, float] | None = None


@dataclass
class Episode:
    """One episode; `ending` is one of `ENDINGS`, `""` if the drive was stopped in the middle of it."""

    number: int
    seed: int
    steps: list[Step] = field(default_factory=list)
    ending: str = ""

    @property
    def total_return(self) -> float:
        """The undiscounted sum of its rewards."""
        return float(sum(step.reward for step in self.steps))

    @property
    def controls(self) -> FloatArray:
        """Throttle, brake, steer of every step, `[steps, 3]`."""
        return np.array([step.answer.controls for step in self.steps], np.float32).reshape(-1, 3)

    def count(self, source: str) -> int:
        return sum(step.answer.source == source for step in self.steps)


@dataclass(frozen=True)
class Event:
    """Something that happened to the loop: the answers' source or its reason changed, or a period was missed.

    `steps` is for how many periods in a row it went on.
    """

    episode: int
    step: int
    time_s: float
    kind: str
    detail: str
    steps: int = 1


def events_of(episodes: Sequence[Episode]) -> list[Event]:
    """Each run of periods that had another source than the policy, or that ended late, as one event."""
    found: list[Event] = []
    for episode in episodes:
        before = ("policy", "")
        for number, step in enumerate(episode.steps):
            kind = (step.answer.source, step.answer.reason)
            if kind[0] == "policy" and step.late_s > 0:
                kind = ("late", "")
            if kind[0] != "policy" and kind == before:
                last = found.pop()
                found.append(Event(last.episode, last.step, last.time_s, last.kind, last.detail, last.steps + 1))
            elif kind[0] != "policy":
                found.append(Event(episode.number, number, step.time_s, *kind))
            before = kind
    return found


def reasons_of(episodes: Sequence[Episode]) -> dict[str, int]:
    """How many steps had which reason for not being the policy's, the most frequent first."""
    steps = (step for episode in episodes for step in episode.steps if step.answer.source != "policy")
    return dict(Counter(f"{step.answer.source}: {step.answer.reason}".rstrip(": ") for step in steps).most_common())
