"""The report's plots, each an SVG element to be put into a page as it is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.bench.figures import PERCENTILES, estimate
from benchmarks.bench.histograms import Histogram
from benchmarks.bench.results import Results

COLORS = ("#1b6ca8", "#5aa9e6", "#7f8c8d", "#b2bec3", "#c0392b", "#e58e73", "#8e44ad", "#d4a017", "#27ae60")
ROLES = ("supervisor", "frontend", "worker", "server")
WIDTH = 9.0
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False}


def plots(results: Results) -> dict[str, str]:
    """SVG by title; a part that was not measured has no plot."""
    names = [one.name for one in results.participants if one.refused is None]
    loads = {(part.load, part.connections) for part in results.slices if part.valid and part.contender in names}
    made: dict[str, Callable[[], str]] = {}
    if ("closed", 1) in loads:
        made["Latency of a single client"] = lambda: _latencies(results, names)
    if any(load == "closed" for load, _ in loads):
        made["Requests a second"] = lambda: _throughput(results, names)
        made["Processor time per request"] = lambda: _cpu(results, names)
    if any(load == "constant" for load, _ in loads):
        made["Latencies at the same rate of arrivals"] = lambda: _distribution(results, names)
    if results.memory:
        made["Memory"] = lambda: _memory(results)
    if results.bulk:
        made["One request of many rows"] = lambda: _bulk(results)
    if results.runtimes:
        made["The network alone"] = lambda: _runtimes(results)
    with mpl.rc_context(STYLE):
        return {title: draw() for title, draw in made.items()}


def _latencies(results: Results, names: Sequence[str]) -> str:
    with _figure(0.4 * len(names) + 1.2) as (figure, axes):
        for column, quantity in enumerate(PERCENTILES):
            found = [estimate(results, f"{quantity}@closed-1", name) for name in names]
            values = [one.value if one else float("nan") for one in found]
            axes.scatter(
                values, range(len(names)), color=COLORS[column * 2], label=quantity.removesuffix("_ms").upper()
            )
        axes.set(xscale="log", xlabel="milliseconds")
        _name_rows(axes, names)
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return _svg(figure)


def _throughput(results: Results, names: Sequence[str]) -> str:
    connections = sorted({part.connections for part in results.slices if part.load == "closed"})
    with _figure(0.5 * len(names) + 1.2) as (figure, axes):
        height = 0.8 / len(connections)
        for index, number in enumerate(connections):
            for row, name in enumerate(names):
                position = row + (index - (len(connections) - 1) / 2) * height
                own = [
                    part.per_second
                    for part in results.slices
                    if part.contender == name and part.load == "closed" and part.connections == number and part.valid
                ]
                found = estimate(results, f"per_second@closed-{number}", name)
                label = f"{number} connections" if row == 0 else None
                axes.barh(
                    position, found.value if found else 0, height, color=COLORS[index * 2], alpha=0.6, label=label
                )
                axes.scatter(own, [position] * len(own), color="black", s=4, zorder=3)
        axes.set(xlabel="requests a second; bars are medians, points are rounds")
        _name_rows(axes, names)
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return _svg(figure)


def _cpu(results: Results, names: Sequence[str]) -> str:
    most = max(part.connections for part in results.slices if part.load == "closed")
    shares: dict[str, dict[str, float]] = {}
    for name in names:
        parts = [
            part
            for part in results.slices
            if part.valid and part.contender == name and part.load == "closed" and part.connections == most
        ]
        requests = sum(part.requests for part in parts) or 1
        shares[name] = {role: sum(part.cpu_seconds.get(role, 0) for part in parts) * 1e6 / requests for role in ROLES}
    return _stacked(shares, f"microseconds of processor time per request, {most} connections")


def _memory(results: Results) -> str:
    shares = {name: {role: part.pss_mib for role, part in roles.items()} for name, roles in results.memory.items()}
    return _stacked(shares, "MiB, shared pages divided among those who share them")


def _distribution(results: Results, names: Sequence[str]) -> str:
    with _figure(3.8) as (figure, axes):
        for index, name in enumerate(names):
            parts = [part for part in results.slices if part.load == "constant" and part.contender == name]
            pooled = Histogram.pooled(part.latencies for part in parts if part.valid)
            seen, xs, ys = 0, [], []
            for latency, count in pooled.counts:
                xs.append(latency / 1e3)
                ys.append(1 - seen / len(pooled))
                seen += count
            axes.step(xs, ys, where="post", color=COLORS[index % len(COLORS)], label=name)
        axes.set(xscale="log", yscale="log", xlabel="milliseconds since the request was due", ylabel="share slower")
        axes.legend(ncols=2, frameon=False, fontsize=8)
    return _svg(figure)


def _bulk(results: Results) -> str:
    subjects = list(dict.fromkeys(part.subject for part in results.bulk))
    with _figure(3.8) as (figure, axes):
        for index, subject in enumerate(subjects):
            rows = sorted({part.rows for part in results.bulk if part.subject == subject})
            found = [estimate(results, f"rows_per_second@bulk-{number}", subject) for number in rows]
            speeds = [one.value if one else float("nan") for one in found]
            axes.plot(rows, speeds, marker="o", color=COLORS[index % len(COLORS)], label=subject)
        axes.set(xscale="log", yscale="log", xlabel="rows in the request", ylabel="rows a second")
        axes.legend(ncols=2, frameon=False, fontsize=8)
    return _svg(figure)


def _runtimes(results: Results) -> str:
    with _figure(3.8) as (figure, axes):
        kinds = list(dict.fromkeys(part.runtime for part in results.runtimes))
        for index, kind in enumerate(kinds):
            own = [part for part in results.runtimes if part.runtime == kind]
            for tile, line in ((1, ":"), (16, "--"), (None, "-")):
                shown = [part for part in own if part.tile == (tile or part.rows)]
                speeds = [part.rows / part.seconds for part in shown]
                label = f"{kind}, {f'tile {tile}' if tile else 'one pass'}"
                axes.plot([part.rows for part in shown], speeds, line, marker=".", color=COLORS[index * 4], label=label)
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="rows a second")
        axes.legend(ncols=3, frameon=False, fontsize=8)
    return _svg(figure)


def _stacked(shares: dict[str, dict[str, float]], label: str) -> str:
    names = list(shares)
    roles = [role for role in ROLES if any(own.get(role) for own in shares.values())]
    with _figure(0.35 * len(names) + 1.2) as (figure, axes):
        left = [0.0] * len(names)
        for role in roles:
            widths = [shares[name].get(role, 0.0) for name in names]
            axes.barh(range(len(names)), widths, 0.7, left=left, color=COLORS[ROLES.index(role) * 2], label=role)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set(xlabel=label)
        _name_rows(axes, names)
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return _svg(figure)


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, Any]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    yield figure, axes


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
