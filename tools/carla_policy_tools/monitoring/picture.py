"""Draws a dashboard from a Prometheus: `python -m carla_policy_tools.monitoring.picture driving.png`.

A picture of each panel's queries, for those who have no Grafana at hand. Needs matplotlib (the extra `bench`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from carla_policy_tools.monitoring.api import Api, QueryError, Series
from carla_policy_tools.monitoring.dashboards import DASHBOARDS, panel_queries

COLUMNS = 4
VARIABLES = {"model_version": ".*", "control": "steer", "datasource": "Prometheus"}
MAX_SERIES = 12
_POINTS = 240
_LABEL = re.compile(r"{{\s*(\w+)\s*}}")
_UNITS = {"percentunit": "share", "s": "s", "reqps": "1/s", "cps": "1/s", "none": ""}


def legend(template: str, labels: Mapping[str, str]) -> str:
    """`template` with the values of labels in it, as Grafana fills it in."""
    return " ".join(_LABEL.sub(lambda match: labels.get(match[1], ""), template).split())


def draw(
    api: Api,
    dashboard: Mapping[str, Any],
    path: Path,
    *,
    last_s: float,
    variables: Mapping[str, str] = VARIABLES,
    titles: Sequence[str] | None = None,
) -> None:
    """Draw the panels of `dashboard` over the last `last_s` seconds into the file `path`; `titles` chooses some."""
    from matplotlib.figure import Figure

    panels = [
        (panel, expressions)
        for panel, expressions in panel_queries(dashboard, variables)
        if panel["type"] != "table" and (titles is None or panel["title"] in titles)
    ]
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.7 * rows), layout="constrained")
    end = time.time()
    for number, (panel, expressions) in enumerate(panels):
        axes = figure.add_subplot(rows, COLUMNS, number + 1)
        found = [
            (legend(target["legendFormat"], series.labels), series)
            for target, expression in zip(panel["targets"], expressions, strict=True)
            for series in api.query_range(expression, end - last_s, end, max(last_s / _POINTS, 1.0))
        ]
        if panel["type"] == "bargauge":
            _draw_bars(axes, found)
        elif panel["type"] == "state-timeline":
            _draw_states(axes, found, panel, end - last_s)
        else:
            _draw_lines(axes, found, panel, end - last_s)
        title = panel["title"].replace("$control", variables.get("control", ""))
        unit = _UNITS.get(panel["fieldConfig"]["defaults"]["unit"], "")
        axes.set_title(f"{title}, {unit}" if unit else title, fontsize=9, loc="left")
        axes.tick_params(labelsize=6)
        if panel["type"] != "bargauge":
            axes.set_xlim(0, last_s / 60)
            axes.set_xlabel("minutes", fontsize=6, labelpad=1)
    figure.savefig(path, dpi=90)


def _draw_lines(axes: Any, found: Sequence[tuple[str, Series]], panel: Mapping[str, Any], start: float) -> None:
    largest = sorted(found, key=lambda item: -max(filter(math.isfinite, item[1].values), default=-math.inf))
    for name, series in sorted(largest[:MAX_SERIES], key=lambda item: item[0]):
        axes.plot(_minutes(series, start), series.values, linewidth=1, label=name or panel["title"])
    defaults = panel["fieldConfig"]["defaults"]
    for step in defaults["thresholds"]["steps"][1:]:
        axes.axhline(step["value"], color=step["color"], linewidth=0.7, linestyle="--")
    if "min" in defaults:
        axes.set_ylim(bottom=defaults["min"])
    if found:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)


def _draw_states(axes: Any, found: Sequence[tuple[str, Series]], panel: Mapping[str, Any], start: float) -> None:
    names = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for place, (_, series) in enumerate(found):
        for value, state in names.items():
            times = [
                time for time, now in zip(_minutes(series, start), series.values, strict=True) if now == float(value)
            ]
            axes.scatter(times, [place] * len(times), color=state["color"], s=6, marker="s")
    axes.set_yticks(range(len(found)), [name or "none" for name, _ in found], fontsize=5)
    axes.set_ylim(-0.5, max(len(found), 1) - 0.5)


def _draw_bars(axes: Any, found: Sequence[tuple[str, Series]]) -> None:
    bars = sorted(((name, series.values[-1]) for name, series in found), key=lambda item: float(item[0]))
    axes.bar([name for name, _ in bars], [value for _, value in bars])
    axes.tick_params(axis="x", rotation=90)


def _minutes(series: Series, start: float) -> list[float]:
    return [(time - start) / 60 for time in series.times]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with a reason on standard error."""
    names = {board.uid.rpartition("-")[2]: board for board in DASHBOARDS}
    parser = argparse.ArgumentParser(prog="python -m carla_policy_tools.monitoring.picture", description=__doc__)
    parser.add_argument("file", type=Path, help="to draw into: .png, .svg or .pdf")
    parser.add_argument("--dashboard", choices=sorted(names), default="driving")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="where it answers")
    parser.add_argument("--last", type=float, default=3600.0, help="seconds to show")
    parser.add_argument("--version", default=".*", help="a regular expression of versions")
    parser.add_argument("--control", default="steer", help="whose distribution to show")
    parser.add_argument("--panel", action="append", metavar="TITLE", help="only this one; may be said several times")
    options = parser.parse_args(arguments)
    variables = {**VARIABLES, "model_version": options.version, "control": options.control}
    dashboard = json.loads(json.dumps(names[options.dashboard].to_json()))
    try:
        draw(
            Api(options.prometheus),
            dashboard,
            options.file,
            last_s=options.last,
            variables=variables,
            titles=options.panel,
        )
    except (QueryError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
