"""The figures of a drive: how far it got, how smoothly, who answered, and whether the loop kept its time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy_client.misses import LATE
from carla_policy_tools.driving.records import ENDINGS, SOURCES, Episode, Settings, Step, reasons_of

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def summarize(episodes: Sequence[Episode], settings: Settings) -> dict[str, Any]:
    """What `drive` prints and its report begins with, as JSON; a figure of nothing is `None`.

    `returns` and `lengths` are over episodes. `latency_s` is of steps whose answer was the server's, `late_s` of all.
    `overruns` are steps that ended after their period; `overruns_by_simulator` those that had been in time without
    what the simulator took.
    """
    steps = [step for episode in episodes for step in episode.steps]
    returns = [episode.total_return for episode in episodes]
    endings = Counter(episode.ending or "stopped" for episode in episodes)
    answered = [step.answer.latency_s for step in steps if step.answer.source == "policy"]
    overruns = [step for step in steps if step.late_s > 0]
    return {
        "episodes": len(episodes),
        "steps": len(steps),
        "seconds": round(sum(duration_s(episode) for episode in episodes), 3),
        "returns": _spread(returns),
        "lengths": _spread([len(episode.steps) for episode in episodes]),
        "endings": {name: endings.get(name, 0) for name in (*ENDINGS, "stopped")},
        "jerk": jerk_of(episodes, settings),
        "sources": {source: sum(episode.count(source) for episode in episodes) for source in SOURCES},
        "reasons": reasons_of(episodes),
        "fallback_share": share(sum(step.answer.source == "fallback" for step in steps), len(steps)),
        "deadline_misses": sum(_missed(step) for step in steps),
        "safe_actions": sum(step.answer.is_safe_action for step in steps),
        "interventions": dict(Counter(kind for step in steps for kind in step.answer.interventions).most_common()),
        "versions": dict(Counter(step.answer.version for step in steps if step.answer.version).most_common()),
        "latency_s": quantiles(answered),
        "waited_s": quantiles([step.answer.latency_s for step in steps]),
        "late_s": quantiles([step.late_s for step in steps]),
        "overruns": len(overruns),
        "overruns_by_simulator": sum(step.late_s <= step.simulated_s for step in overruns),
    }


def duration_s(episode: Episode) -> float:
    """From its first step to the end of its last answer."""
    if not episode.steps:
        return 0.0
    last = episode.steps[-1]
    return last.time_s + last.answer.latency_s - episode.steps[0].time_s


def share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Those of `QUANTILES`; `None` of nothing."""
    if not values:
        return None
    found = np.quantile(np.array(values), list(QUANTILES.values()), method="higher")
    return {name: round(float(value), 6) for name, value in zip(QUANTILES, found, strict=True)}


def jerk_of(episodes: Sequence[Episode], settings: Settings) -> dict[str, Any] | None:
    """Mean and largest absolute change of acceleration, with unit and source; `None` where no time step is known.

    The acceleration is the difference of the speed from one step to the next, as the vehicle or else the observation
    has it; where neither tells it, throttle less brake stands for it, in shares of full acceleration.
    """
    step_s = settings.step_s or settings.period_s
    steps = [step for episode in episodes for step in episode.steps]
    if not step_s or not steps:
        return None
    if all(step.speed is not None for step in steps):
        source, unit, accelerations = "vehicle's speed", "m/s³", [_differences(_speeds(e), step_s) for e in episodes]
    elif any(step.row[0] != 0 for step in steps):
        unit = f"{settings.units[0] if settings.units else 'm/s'}/s²".replace("/s/s²", "/s³")
        source, accelerations = "observed speed", [_differences(_observed(e), step_s) for e in episodes]
    else:
        source, unit = "throttle less brake", "1/s"
        accelerations = [np.asarray(e.controls[:, 0] - e.controls[:, 1], np.float64) for e in episodes]
    changes = np.abs(np.concatenate([_differences(series, step_s) for series in accelerations]))
    if not len(changes):
        return None
    mean, largest = round(float(changes.mean()), 6), round(float(changes.max()), 6)
    return {"mean": mean, "max": largest, "unit": unit, "source": f"{source}, steps of {step_s:g} s"}


def _speeds(episode: Episode) -> NDArray[np.float64]:
    return np.array([step.speed for step in episode.steps], np.float64)


def _observed(episode: Episode) -> NDArray[np.float64]:
    return np.array([step.row[0] for step in episode.steps], np.float64)


def _differences(values: NDArray[np.float64], step_s: float) -> NDArray[np.float64]:
    return np.diff(values) / step_s


def _missed(step: Step) -> bool:
    """Whether the deadline passed without the policy's action: the client gave up, or the server did and said so."""
    answer = step.answer
    return (answer.source, answer.reason) == ("fallback", LATE) or (
        answer.is_safe_action and "deadline" in answer.interventions
    )


def _spread(values: Iterable[float]) -> dict[str, float] | None:
    found = [float(value) for value in values]
    if not found:
        return None
    mean = math.fsum(found) / len(found)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1)) if found[1:] else 0.0
    return {"mean": mean, "std": deviation, "min": min(found), "max": max(found)}
