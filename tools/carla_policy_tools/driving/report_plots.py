"""The plots of a drive's report, each an SVG element. How large they get depends on the plot, not on the drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from carla_policy_tools.driving.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION, WIDTH, drawing, svg_of
from carla_policy_tools.driving.records import Drive, Episode, Event, Settings

PANELS, POINTS, BINS, MARKED = 12, 800, 800, 60
"""Most episodes in a plot, points in a line, pieces of the time line, and episodes whose beginning it marks."""
_SOURCES: dict[str, tuple[str, Any, float]] = {
    "policy": (BLUE, "-", 1.5),
    "fallback": (VERMILION, "-", 2.6),
    "override": (GREEN, (0, (1, 0.6)), 2.6),
}
_MARKS = {"fallback": "o", "override": "s"}
_ENDINGS = {
    "completed": ("s", "driven to the end"),
    "collision": ("X", "collision"),
    "off_road": ("^", "off the road"),
    "terminated": ("D", "ended by the environment"),
    "max_steps": ("P", "cut by the step limit"),
    "": ("d", "drive stopped"),
}
_KINDS = {"fallback": VERMILION, "override": GREEN, "safe_action": ORANGE, "late": PURPLE, "note": INK}
_WORDS = {"safe_action": "server's safe action", "late": "period overrun"}
_GAP = np.full(2, np.nan)
_SHOWN = {"": "stopped", "off_road": "off the road", "max_steps": "step limit"}


def ending_of(episode: Episode) -> str:
    """How it ended, in words."""
    return _SHOWN.get(episode.ending, episode.ending)


def thinned(count: int, most: int = POINTS) -> NDArray[np.intp]:
    """Indices of at most so many of `count` points, evenly, the first and last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)


def plot_trajectories(drive: Drive, episodes: Sequence[Episode]) -> str | None:
    """Where the vehicle went, an episode a panel; `None` where no environment said it."""
    shown = [episode for episode in episodes if any(step.position for step in episode.steps)]
    if not shown:
        return None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    panel = WIDTH / columns
    low, high = _extent(drive, shown)
    span = np.maximum(high - low, 1.0)
    height = float(np.clip(panel * span[1] / span[0], 0.35 * panel, 1.3 * panel))
    subplots = {"nrows": rows, "ncols": columns, "sharex": True, "sharey": True, "squeeze": False}
    with drawing(rows * (height + 0.3) + 0.9, **subplots) as (figure, axes):
        for ax, episode in zip(axes.flat, shown, strict=False):
            _draw_road(ax, drive)
            _draw_path(ax, episode)
            ax.set_title(
                f"episode {episode.number}, return {episode.total_return:.1f}: {ending_of(episode)}", fontsize=8
            )
            ax.set_aspect("equal")
            ax.set_xlim(low[0], high[0])
            # Steering to the right is positive with y downwards, as in CARLA and in highway-env.
            ax.set_ylim(high[1], low[1])
            ax.tick_params(labelsize=7)
        for ax in axes.flat[len(shown) :]:
            ax.set_visible(False)
        for ax in axes.flat[max(len(shown) - columns, 0) : len(shown)]:
            ax.tick_params(labelbottom=True)
        figure.supxlabel("x in m", fontsize=9)
        figure.supylabel("y in m, downwards", fontsize=9)
        figure.legend(handles=_legend(drive, shown), ncols=4, loc="outside upper center", fontsize=8)
        return svg_of(
            figure, "trajectories", f"Where the vehicle went in {len(shown)} episodes; the table below has all"
        )


def plot_course(episode: Episode, settings: Settings) -> str:
    """Who drove, speed and controls of an episode, over its time."""
    kept = thinned(len(episode.steps))
    seconds = settings.step_s or settings.period_s
    unit = seconds or 1.0
    times, controls = kept * unit, episode.controls[kept]
    sources = [source for source in _SOURCES if source == "policy" or episode.count(source)]
    heights = (0.12 + 0.16 * len(sources), 1, 1.3)
    with drawing(3.0 + 0.2 * len(sources), nrows=3, sharex=True, height_ratios=heights) as (figure, axes):
        top, middle, bottom = axes
        bars: dict[str, list[tuple[float, float]]] = {source: [] for source in sources}
        for source, first, last in _thinned_runs(episode):
            bars[source].append((first * unit, (last + 1 - first) * unit))
        for lane, source in enumerate(sources):
            color = _SOURCES[source][0]
            top.broken_barh(bars[source], (lane - 0.3, 0.6), facecolor=color)
            for ax in (middle, bottom) if source != "policy" else ():
                whole = ax.get_xaxis_transform()
                ax.broken_barh(bars[source], (0, 1), facecolor=color, alpha=0.15, linewidth=0, transform=whole)
        top.set_yticks(range(len(sources)), sources)
        top.set_ylim(len(sources) - 0.5, -0.5)
        label, speeds = _speeds(episode, settings)
        middle.plot(times, speeds[kept], color=INK, linewidth=1.2)
        middle.set_ylabel(label)
        looks = (("throttle", BLUE, "-"), ("brake", VERMILION, "--"), ("steer", GREEN, "-."))
        for column, (name, color, line) in enumerate(looks):
            bottom.plot(times, controls[:, column], color=color, linestyle=line, linewidth=1.2, label=name)
        bottom.set(ylabel="controls", ylim=(-1.05, 1.05), xlabel="seconds of the episode" if seconds else "step")
        figure.legend(ncols=3, loc="outside upper center", fontsize=8)
        return svg_of(figure, f"course-{episode.number}", f"Speed and controls over time in episode {episode.number}")


def plot_timeline(drive: Drive) -> str | None:
    """What happened when, a lane for each kind of event; `None` of nothing."""
    events = drive.events
    kinds = [kind for kind in _KINDS if any(event.kind == kind for event in events)]
    if not kinds:
        return None
    last = [episode.steps[-1].time_s for episode in drive.episodes if episode.steps]
    end = max([*(event.time_s + event.duration_s for event in events), *last])
    piece = max(end, 1e-6) / BINS
    with drawing(0.9 + 0.34 * len(kinds)) as (figure, ax):
        for lane, kind in enumerate(kinds):
            own = [event for event in events if event.kind == kind]
            color = _KINDS[kind]
            bars = [(first * piece, (last - first + 1) * piece) for first, last in _lit(own, piece)]
            ax.broken_barh(bars, (lane - 0.35, 0.7), facecolor=color, edgecolor=color, linewidth=0.4)
        labels = [f"{_WORDS.get(kind, kind)} ({sum(event.kind == kind for event in events)})" for kind in kinds]
        ax.set_yticks(range(len(kinds)), labels)
        ax.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(0, end * 1.01), xlabel="seconds of the drive")
        ax.grid(visible=False, axis="x")
        if len(drive.episodes) <= MARKED:
            for episode in drive.episodes:
                if episode.steps:
                    ax.axvline(episode.steps[0].time_s, color=GREY, linewidth=0.6, linestyle=":")
        return svg_of(figure, "timeline", "When what happened; the table below has the events")


def plot_latencies(drive: Drive) -> str | None:
    """How long the loop waited for the answers, with the deadline; `None` where nobody was asked."""
    answers = [step.answer for episode in drive.episodes for step in episode.steps]
    waited = {
        source: np.array([1e3 * answer.latency_s for answer in answers if answer.source == source])
        for source in ("policy", "fallback")
    }
    everything = np.concatenate(list(waited.values()))
    if not len(everything) or not everything.max() > 0:
        return None
    deadline = 1e3 * drive.settings.deadline_s if drive.settings.deadline_s else None
    end = max(float(np.quantile(everything, 0.999)) * 1.05, (deadline or 0) * 1.1)
    bins = np.linspace(0, end, 61)
    beyond = int((everything > end).sum())
    with drawing(2.6) as (figure, ax):
        ax.hist(np.minimum(waited["policy"], end), bins=bins, color=BLUE, label="answered")
        if len(waited["fallback"]):
            ax.hist(
                np.minimum(waited["fallback"], end),
                bins=bins,
                facecolor="none",
                edgecolor=VERMILION,
                hatch="////",
                histtype="stepfilled",
                label="waited for nothing (fallback)",
            )
        if deadline is not None:
            ax.axvline(deadline, color=INK, linewidth=1.4, linestyle="--", label=f"deadline, {deadline:g} ms")
        more = f"; the last bar holds {beyond} more beyond" if beyond else ""
        ax.set(
            yscale="log", xlabel=f"milliseconds from the question to the action{more}", ylabel="steps", xlim=(0, end)
        )
        figure.legend(ncols=3, loc="outside upper center", fontsize=8)
        return svg_of(figure, "latencies", "How long the control loop waited for its answers, with the deadline")


def _extent(drive: Drive, episodes: Sequence[Episode]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    driven = [step.position for episode in episodes for step in episode.steps if step.position]
    points = np.array([*driven, *(point for line in drive.road for point in line)], np.float64)
    margin = 0.03 * max(float(np.ptp(points, axis=0).max()), 1.0)
    return points.min(axis=0) - margin, points.max(axis=0) + margin


def _draw_road(ax: Any, drive: Drive) -> None:
    for line in drive.road:
        points = np.array(line)[thinned(len(line))]
        ax.plot(points[:, 0], points[:, 1], color=GREY, linewidth=0.8)


def _draw_path(ax: Any, episode: Episode) -> None:
    places = np.array([step.position or (np.nan, np.nan) for step in episode.steps])
    pieces: dict[str, list[NDArray[np.float64]]] = {source: [] for source in _SOURCES}
    for source, first, last in _pieces(episode):
        pieces[source] += [places[first], places[min(last + 1, len(places) - 1)], _GAP]
    for source, points in pieces.items():
        if not points:
            continue
        color, line, width = _SOURCES[source]
        x, y = np.array(points).T
        ax.plot(x, y, color=color, linestyle=line, linewidth=width, zorder=3)
        if source in _MARKS:
            look: dict[str, Any] = {
                "color": color,
                "markersize": 3.5,
                "markerfacecolor": "white",
                "markeredgewidth": 0.9,
            }
            ax.plot(x[::3], y[::3], _MARKS[source], zorder=4, **look)
    known = places[~np.isnan(places[:, 0])]
    ax.plot(*known[0], "o", color=INK, markersize=4, zorder=5)
    marker, _ = _ENDINGS[episode.ending]
    ax.plot(*known[-1], marker, color=INK, markersize=8, markeredgecolor="white", zorder=5)


def _legend(drive: Drive, episodes: Sequence[Episode]) -> list[Any]:
    handles: list[Any] = []
    for source, (color, line, width) in _SOURCES.items():
        if any(episode.count(source) for episode in episodes):
            mark: dict[str, Any] = {"marker": _MARKS.get(source), "markerfacecolor": "white", "markersize": 4}
            handles.append(Line2D([], [], color=color, linestyle=line, linewidth=width, label=source, **mark))
    if drive.road:
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="border of the road"))
    plain: dict[str, Any] = {"color": INK, "linestyle": "none"}
    handles.append(Line2D([], [], marker="o", markersize=4, label="start", **plain))
    for ending, (marker, text) in _ENDINGS.items():
        if any(episode.ending == ending for episode in episodes):
            handles.append(Line2D([], [], marker=marker, markersize=7, label=text, **plain))
    return handles


def _thinned_runs(episode: Episode) -> Iterator[tuple[str, int, int]]:
    """Source, and the first and last step, of each run of pieces of one source; see `_pieces`."""
    for source, run in groupby(_pieces(episode), key=itemgetter(0)):
        pieces = list(run)
        yield source, pieces[0][1], pieces[-1][2]


def _pieces(episode: Episode) -> Iterator[tuple[str, int, int]]:
    """Source, and the first and last step, of at most `POINTS` pieces: what was least usual in each of them."""
    sources = [step.answer.source for step in episode.steps]
    edges = np.linspace(0, len(sources), min(len(sources), POINTS) + 1).round().astype(int).tolist()
    for first, after in pairwise(edges):
        among = set(sources[first:after])
        yield next(one for one in ("override", "fallback", "policy") if one in among), first, after - 1


def _lit(events: Sequence[Event], piece: float) -> Iterator[tuple[int, int]]:
    """The first and last of each run of pieces of time in which one of `events` was going on."""
    lit = np.zeros(BINS + 2, np.bool_)
    for event in events:
        first = min(int(event.time_s / piece), BINS)
        lit[first : min(int((event.time_s + event.duration_s) / piece), BINS) + 1] = True
    edges = np.flatnonzero(np.diff(lit.astype(np.int8), prepend=0))
    yield from ((int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True))


def _speeds(episode: Episode, settings: Settings) -> tuple[str, NDArray[np.float64]]:
    if all(step.speed is not None for step in episode.steps):
        return "speed in m/s", np.array([step.speed for step in episode.steps], np.float64)
    unit = settings.units[0] if settings.units else "m/s"
    return f"observed speed in {unit}", np.array([step.row[0] for step in episode.steps], np.float64)
