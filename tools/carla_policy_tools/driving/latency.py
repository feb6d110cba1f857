"""Latency-aware evaluation: what late and lost actions cost a version, by fallback strategy.

Every cell of the grid drives the same seeded episodes with the same losses, in simulated time. A cell's return is
compared with the plain loop's (no latency, no loss) episode by episode: the intervals are Student's t of the mean, for
the returns and for their paired differences.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from carla_policy_tools.driving.defaults import DEADLINE_S, ENVIRONMENT, FIRST_SEED
from carla_policy_tools.driving.delayed import Clock, Delay
from carla_policy_tools.driving.records import ENDINGS
from carla_policy_tools.driving.strategies import strategy_of

CONFIDENCE = 0.95
FORMAT = "carla-policy latency 1"
METHOD = (
    "Means of the episodes' returns, with Student's t interval at 95 %. Differences to the plain loop (0 ms, no loss) "
    "are paired, episode by episode on the same seed, and have the t interval of their mean. Which answers are lost "
    "follows from the episode's seed alone, so each loss contains the smaller ones."
)


@dataclass(frozen=True)
class Plan:
    """What is driven: `source` is an archive or an artifact's directory; seconds, and shares of lost answers.

    Without a `deadline_s` an answer counts as lost after 50 ms, the vehicle client's own deadline, or after the latency
    where that is longer. `step_s` is for environments that do not say how long their steps are.
    """

    source: Path
    environment: str = ENVIRONMENT
    environment_arguments: str = "{}"
    latencies_s: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2)
    losses: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    strategies: tuple[str, ...] = ("brake", "hold", "decay")
    episodes: int = 20
    seed: int = FIRST_SEED
    max_steps: int | None = None
    deadline_s: float | None = None
    step_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("latencies_s", "losses", "strategies"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name}: expected values that differ, got {', '.join(map(str, values)) or 'none'}")
        for strategy in self.strategies:
            strategy_of(strategy)
        for latency_s in self.latencies_s:
            for loss in self.losses:
                self.delay(latency_s, loss)
        if self.episodes < 1 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError(f"expected one episode and step at least, got {self.episodes} and {self.max_steps}")

    def delay(self, latency_s: float, loss: float) -> Delay:
        deadline_s = max(DEADLINE_S, latency_s) if self.deadline_s is None else self.deadline_s
        return Delay(latency_s, loss, deadline_s)

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.episodes)

    @property
    def conditions(self) -> list[Condition]:
        """Every cell that has to be driven, the plain loop first; where no fallback ever acts one stands for all."""
        delays = [self.delay(latency_s, loss) for loss in self.losses for latency_s in self.latencies_s]
        found = [Condition(self.delay(0.0, 0.0), "")]
        for delay in delays:
            found += [Condition(delay, strategy) for strategy in (self.strategies if delay.needs_fallback else ("",))]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Condition:
    """A delay and the strategy that acts without an answer; `""` where none ever does."""

    delay: Delay
    strategy: str


@dataclass(frozen=True)
class Outcome:
    """How an episode went; `fallback_share` of its steps ended with the fallback's action."""

    seed: int
    total_return: float
    length: int
    ending: str
    fallback_share: float


@dataclass(frozen=True)
class Mean:
    """A mean and the half-width of its 95 % interval; `None` of a single value, which has no interval."""

    value: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Student's t. It holds for the mean of many returns, and roughly for few that are skewed by crashes."""
        count = len(values)
        if count < 2:
            return cls(float(np.mean(values)), None)
        error = float(np.std(values, ddof=1)) / math.sqrt(count)
        return cls(float(np.mean(values)), error * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)))


@dataclass(frozen=True)
class Cell:
    """A condition's figures; `difference` is to the plain loop, paired."""

    latency_s: float
    loss: float
    deadline_s: float
    strategy: str
    total_return: Mean
    difference: Mean
    endings: dict[str, int]
    fallback_share: float
    outcomes: tuple[Outcome, ...] = field(repr=False)

    @property
    def worse(self) -> bool:
        """Certain at 95 % to be worse than the plain loop."""
        half_width = self.difference.half_width
        return half_width is not None and self.difference.value + half_width < 0


@dataclass(frozen=True)
class Evaluation:
    """All cells, as `Plan.conditions` orders them; the first is the plain loop."""

    version: str
    card_hash: str
    plan: Plan
    resolution_s: float
    cells: tuple[Cell, ...]

    @property
    def rounded(self) -> dict[float, float]:
        """The seconds asked for that the environment cannot resolve, and what they were rounded up to."""
        clock = Clock(self.resolution_s)
        asked = {*self.plan.latencies_s, *(cell.deadline_s for cell in self.cells)}
        acted = {seconds: clock.ticks(seconds) * self.resolution_s for seconds in sorted(asked)}
        return {seconds: real for seconds, real in acted.items() if not math.isclose(seconds, real, abs_tol=1e-9)}

    def cell(self, latency_s: float, loss: float, strategy: str) -> Cell:
        """The cell of these; that of any strategy where no fallback ever acts."""
        return next(
            cell
            for cell in self.cells
            if (cell.latency_s, cell.loss) == (latency_s, loss) and cell.strategy in (strategy, "")
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON object, with the outcome of every episode."""
        plan = {**asdict(self.plan), "source": self.plan.source.name}
        return {
            "format": FORMAT,
            "version": self.version,
            "card_hash": self.card_hash,
            "settings": plan,
            "resolution_s": self.resolution_s,
            "method": METHOD,
            "cells": [asdict(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Evaluation:
        """The evaluation of such an object; `ValueError` if it has another format."""
        if content.get("format") != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {content.get('format')!r}: not what `latency` wrote")
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["settings"].items()
        }
        plan = Plan(**{**settings, "source": Path(settings["source"])})
        cells = tuple(
            Cell(
                **{
                    **cell,
                    "total_return": Mean(**cell["total_return"]),
                    "difference": Mean(**cell["difference"]),
                    "outcomes": tuple(Outcome(**outcome) for outcome in cell["outcomes"]),
                }
            )
            for cell in content["cells"]
        )
        return cls(content["version"], content["card_hash"], plan, content["resolution_s"], cells)


def cell_of(condition: Condition, outcomes: tuple[Outcome, ...], plain: Sequence[float]) -> Cell:
    """The figures of `outcomes`; `plain` are the returns of the plain loop on the same seeds."""
    returns = [outcome.total_return for outcome in outcomes]
    counted = Counter(outcome.ending for outcome in outcomes)
    return Cell(
        condition.delay.latency_s,
        condition.delay.loss,
        condition.delay.deadline_s,
        condition.strategy,
        Mean.of(returns),
        Mean.of([own - other for own, other in zip(returns, plain, strict=True)]),
        {ending: counted[ending] for ending in ENDINGS if counted[ending]},
        float(np.mean([outcome.fallback_share for outcome in outcomes])),
        outcomes,
    )
