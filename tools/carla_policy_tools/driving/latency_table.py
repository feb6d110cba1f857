"""A latency-aware evaluation in words: its tables, for a terminal and for a page, and what they are of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from carla_policy_tools.driving.latency import Cell, Evaluation, Mean


class Section(NamedTuple):
    """A table: a row for each loss and strategy, a column for each latency."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections_of(found: Evaluation) -> list[Section]:
    """Returns, differences to the plain loop, and how episodes ended."""
    header = ("lost", "fallback", *(f"{1e3 * latency_s:g} ms" for latency_s in found.plan.latencies_s))
    kinds = {
        "mean return": lambda cell: mean_text(cell.total_return),
        "difference to the plain loop; * worse at 95 %, each cell by itself": lambda cell: (
            f"{mean_text(cell.difference, signed=True)}{'*' if cell.worse else ' '}"
        ),
        "episodes driven to the end / collisions / off the road": _endings,
    }
    return [
        Section(title, header, tuple((lost, name, *map(text, cells)) for lost, name, cells in _rows(found)))
        for title, text in kinds.items()
    ]


def remarks_of(found: Evaluation) -> list[str]:
    """What the figures are of, and where the environment is coarser than what was asked."""
    from carla_policy_tools.driving.defaults import DEADLINE_S
    from carla_policy_tools.driving.latency import METHOD

    plan = found.plan
    cut = f" of at most {plan.max_steps} steps" if plan.max_steps else ""
    said = f"{1e3 * (DEADLINE_S if plan.deadline_s is None else plan.deadline_s):g} ms"
    said += ", or after the latency where that is longer," if plan.deadline_s is None else ""
    lines = [
        f"{found.version} in {plan.environment}, in this process and in simulated time: {plan.episodes} episodes{cut}, "
        f"seeds from {plan.seed}. Without an answer after {said} the fallback acts.",
        METHOD,
    ]
    for asked, real in found.rounded.items():
        lines.append(
            f"{1e3 * asked:g} ms were rounded up to {1e3 * real:g} ms: the environment resolves "
            f"{1e3 * found.resolution_s:g} ms."
        )
    return lines


def mean_text(mean: Mean, *, signed: bool = False) -> str:
    value = f"{mean.value:+.1f}" if signed else f"{mean.value:.1f}"
    return value if mean.half_width is None else f"{value} ±{mean.half_width:.1f}"


def _rows(found: Evaluation) -> Iterator[tuple[str, str, list[Cell]]]:
    """One row for all strategies where none of them ever acts."""
    for loss in found.plan.losses:
        for strategy in found.plan.strategies:
            cells = [found.cell(latency_s, loss, strategy) for latency_s in found.plan.latencies_s]
            acts = any(cell.strategy for cell in cells)
            yield f"{100 * loss:g} %", strategy if acts else "any", cells
            if not acts:
                break


def _endings(cell: Cell) -> str:
    """What else ended an episode stands beside, such as leaving the road where the environment does not say so."""
    count = cell.endings.get
    driven = count("completed", 0) + count("max_steps", 0)
    other = f" / {count('terminated')} other" if count("terminated") else ""
    return f"{driven} / {count('collision', 0)} / {count('off_road', 0)}{other}"
