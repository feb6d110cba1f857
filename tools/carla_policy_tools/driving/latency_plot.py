"""What latency costs, as a plot: the mean return over the latency, a panel for each loss, a line for each strategy."""

from __future__ import annotations

from carla_policy_tools.driving.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, drawing, svg_of
from carla_policy_tools.driving.latency import Evaluation, Mean

_LOOKS = ((VERMILION, "-", "o"), (BLUE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (ORANGE, "-", "v"))
_ROW = 4
"""Panels side by side."""


def plot_latency(evaluation: Evaluation, name: str = "latency") -> str:
    """The SVG element."""
    plan = evaluation.plan
    rows = -(-len(plan.losses) // _ROW)
    columns = min(len(plan.losses), _ROW)
    with drawing(0.7 + 2.5 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False) as (
        figure,
        axes,
    ):
        plain = evaluation.cells[0].total_return.value
        for panel, loss in zip(axes.flat, sorted(plan.losses), strict=False):
            panel.axhline(plain, color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="plain loop")
            panel.set_title(f"{100 * loss:g} % lost", fontsize=9)
            _draw_lines(panel, evaluation, loss)
        for panel in axes.flat[len(plan.losses) :]:
            panel.set_visible(False)
        for panel in axes[:, 0]:
            panel.set_ylabel("mean return")
        axes.flat[0].set_xticks([1e3 * latency_s for latency_s in plan.latencies_s])
        figure.supxlabel("latency of an action in ms", fontsize=9)
        handles, labels = axes.flat[len(plan.losses) - 1].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, ncols=len(labels), loc="outside upper center")
        return svg_of(figure, name, f"Mean return of {evaluation.version} over the latency; the table has the figures")


def _draw_lines(panel: object, evaluation: Evaluation, loss: float) -> None:
    plan = evaluation.plan
    latencies = sorted(plan.latencies_s)
    lines = {name: [evaluation.cell(latency_s, loss, name) for latency_s in latencies] for name in plan.strategies}
    alike = all(not cell.strategy for cells in lines.values() for cell in cells)
    shown = {"all alike": next(iter(lines.values()))} if alike else lines
    spread = 0.02 * 1e3 * (latencies[-1] - latencies[0])
    for index, (strategy, cells) in enumerate(shown.items()):
        color, line, marker = (GREY, "-", "o") if alike else _LOOKS[index % len(_LOOKS)]
        # Side by side, so that intervals do not hide one another.
        shift = 0.0 if alike else (index - (len(shown) - 1) / 2) * spread
        panel.errorbar(  # type: ignore[attr-defined]
            [1e3 * latency_s + shift for latency_s in latencies],
            [cell.total_return.value for cell in cells],
            [_half_width(cell.total_return) for cell in cells],
            color=color,
            linestyle=line,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            label=strategy,
        )


def _half_width(mean: Mean) -> float:
    return mean.half_width or 0.0
