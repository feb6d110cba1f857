"""Two drives of the same seed, bit by bit: the same trajectory, or the first step at which they part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy.actions import CONTROLS
from carla_policy.golden import FloatArray
from carla_policy_tools.driving.records import Episode, Step


@dataclass(frozen=True)
class Difference:
    """The first step at which two drives part, and what was not the same there.

    `kind` is `controls`, then the same observation got other controls; else what the environment answered to the same
    controls: `observation`, `reward` or `ending`. `row` `[columns]` is what the first drive observed, `others` what the
    second one did; `controls` `[3]` and `other_controls` likewise; `None` where a drive had ended already.
    """

    kind: str
    episode: int
    seed: int
    step: int
    detail: str
    row: tuple[float, ...] | None
    other_row: tuple[float, ...] | None
    controls: tuple[float, ...] | None
    other_controls: tuple[float, ...] | None

    @property
    def of_environment(self) -> bool:
        """Whether the environment alone parts the drives: it does not follow its seed."""
        return self.kind != "controls"

    @property
    def ulps(self) -> dict[str, int]:
        """How many representable float32 lie between both controls, by name."""
        if self.controls is None or self.other_controls is None:
            return {}
        return dict(zip(CONTROLS, map(ulps, self.controls, self.other_controls), strict=True))

    def __str__(self) -> str:
        return f"episode {self.episode} (seed {self.seed}), step {self.step}: {self.detail}"


def first_difference(first: Episode, second: Episode) -> Difference | None:
    """Where two drives of one seed part, as what happens in an episode happens: observed, steered, rewarded, ended."""
    for step, (one, two) in enumerate(zip(first.steps, second.steps, strict=False)):
        pairs = (
            ("observation", one.row, two.row),
            ("controls", one.answer.controls, two.answer.controls),
            ("reward", np.float64(one.reward), np.float64(two.reward)),
        )
        for kind, a, b in pairs:
            if a.tobytes() != b.tobytes():
                return _difference(kind, first, step, one, two, _detail(kind, np.asarray(a), np.asarray(b)))
    if len(first.steps) != len(second.steps) or first.ending != second.ending:
        step = min(len(first.steps), len(second.steps)) - 1
        ends = [f"{episode.ending or 'stopped'} after {len(episode.steps)} steps" for episode in (first, second)]
        last = [episode.steps[step] if step >= 0 else None for episode in (first, second)]
        return _difference("ending", first, step, last[0], last[1], f"one drive is {ends[0]}, the other {ends[1]}")
    return None


def ulps(one: float, two: float) -> int:
    """How many steps of float32 lie between two numbers; both zeros are the same."""
    return abs(_ordered(one) - _ordered(two))


def _ordered(value: float) -> int:
    bits = int(np.float32(value).view(np.int32))
    return -(bits & 0x7FFFFFFF) if bits < 0 else bits


def _difference(kind: str, episode: Episode, step: int, one: Step | None, two: Step | None, detail: str) -> Difference:
    return Difference(
        kind,
        episode.number,
        episode.seed,
        step,
        detail,
        _numbers(one.row) if one else None,
        _numbers(two.row) if two else None,
        _numbers(one.answer.controls) if one else None,
        _numbers(two.answer.controls) if two else None,
    )


def _numbers(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _detail(kind: str, one: NDArray[Any], two: NDArray[Any]) -> str:
    if one.shape != two.shape:
        return f"{kind} of shape {one.shape} and {two.shape}"
    pairs = enumerate(zip(one.reshape(-1), two.reshape(-1), strict=True))
    place, (a, b) = next((place, (a, b)) for place, (a, b) in pairs if a.tobytes() != b.tobytes())
    name = {"controls": CONTROLS[place % len(CONTROLS)], "reward": "reward"}.get(kind, f"{kind}[{place}]")
    return f"{name} {a!s} and {b!s}"
