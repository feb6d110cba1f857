"""The report of a drive: one HTML page that needs nothing else, however long the drive was.

Plots show a choice of episodes, tables end somewhere, and the page says so where they do.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from carla_policy_tools.driving.film import MAX_EMBEDDED_BYTES, found_films, mark_in, mark_of
from carla_policy_tools.driving.latency import Evaluation
from carla_policy_tools.driving.latency_plot import plot_latency
from carla_policy_tools.driving.latency_table import remarks_of, sections_of
from carla_policy_tools.driving.printing import figures
from carla_policy_tools.driving.records import Drive, Episode, Settings, spread_by_return
from carla_policy_tools.driving.report_plots import (
    MARKED,
    PANELS,
    ending_of,
    plot_course,
    plot_latencies,
    plot_timeline,
    plot_trajectories,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
REPORT_FILE, DRIVE_FILE, LATENCY_FILE = "report.html", "drive.json", "latency.json"
COURSES, MAX_EVENTS, MAX_EPISODES = 3, 200, 2_000
"""Most episodes over time, and most rows of the two tables."""


@dataclass(frozen=True)
class Picture:
    """A file beside the report; `data` is its content as a URL, where it is small enough to stand in the page."""

    name: str
    kind: str
    data: str | None
    episode: str


def write_report(drive: Drive | None, directory: Path, latency: Evaluation | None = None) -> Path:
    """Write `report.html` into `directory`; with the filmstrips and videos, and without `latency` the evaluation there.

    Without a `drive` the page has the latency-aware evaluation alone.
    """
    evaluation = latency or read_evaluation(directory)
    path = directory / REPORT_FILE
    path.write_text(render(drive, evaluation, pictures_in(directory, drive) if drive else []), encoding="utf-8")
    return path


def write_latency_section(evaluation: Evaluation, directory: Path) -> Path:
    """The report in `directory` once more, with `evaluation`; `ValueError` if its drive cannot be read."""
    file = directory / DRIVE_FILE
    drive = Drive.from_json(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    return write_report(drive, directory, evaluation)


def read_evaluation(directory: Path) -> Evaluation | None:
    """What `carla-policy latency` left there; `None` of nothing."""
    file = directory / LATENCY_FILE
    return Evaluation.from_json(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def render(drive: Drive | None, evaluation: Evaluation | None, pictures: list[Picture]) -> str:
    """The page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        drive=drive and _drive_context(drive),
        latency=evaluation and _latency_context(evaluation, drive),
        pictures=pictures,
        number=number,
        milliseconds=milliseconds,
    )


def pictures_in(directory: Path, drive: Drive) -> list[Picture]:
    """Those that `film.write_films` made of `drive`; an `.mp4` lies there for other uses than a page."""
    found, marks = [], {mark_of(episode) for episode in drive.episodes}
    for path in found_films(directory):
        kind = "filmstrip" if path.suffix == ".png" else "video"
        if path.suffix == ".mp4" or mark_in(path) not in marks:
            continue
        data = None
        if path.stat().st_size <= MAX_EMBEDDED_BYTES:
            content = base64.b64encode(path.read_bytes()).decode()
            data = f"data:image/{path.suffix.removeprefix('.')};base64,{content}"
        found.append(Picture(path.name, kind, data, path.stem.partition("-")[2]))
    return found


def number(value: float | None) -> str:
    """At most four digits, thousands grouped; nothing of nothing."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1e4 or float(value).is_integer() else f"{value:.4g}"


def milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{number(round(1e3 * seconds, 3))} ms"


def _drive_context(drive: Drive) -> dict[str, Any]:
    events = drive.events
    shown = spread_by_return(drive.episodes, PANELS)
    courses = spread_by_return(drive.episodes, COURSES)
    helped = max(drive.episodes, key=lambda episode: len(episode.steps) - episode.count("policy"), default=None)
    if helped and helped not in courses and helped.count("policy") < len(helped.steps):
        courses = sorted([*courses, helped], key=lambda episode: episode.number)
    return {
        "settings": drive.settings,
        "stopped": drive.stopped,
        "figures": list(figures(drive)),
        "trajectories": plot_trajectories(drive, shown),
        "shown": len(shown),
        "has_road": bool(drive.road),
        "courses": [(episode, plot_course(episode, drive.settings)) for episode in courses],
        "timeline": plot_timeline(drive),
        "latencies": plot_latencies(drive),
        "marks_episodes": len(drive.episodes) <= MARKED,
        "events": events[:MAX_EVENTS],
        "events_in_all": len(events),
        "episodes": [_episode_row(episode) for episode in drive.episodes[:MAX_EPISODES]],
        "episodes_in_all": len(drive.episodes),
        "rows": _settings_rows(drive.settings),
    }


def _latency_context(evaluation: Evaluation, drive: Drive | None) -> dict[str, Any]:
    other = drive is not None and drive.settings.card_hash != evaluation.card_hash
    return {
        "version": evaluation.version,
        "is_of_another": other,
        "plot": plot_latency(evaluation),
        "sections": sections_of(evaluation),
        "remarks": remarks_of(evaluation),
    }


def _settings_rows(settings: Settings) -> list[tuple[str, str]]:
    """All that is known of how it was made, by name; what was not set is left out."""
    rows = []
    for name, value in asdict(settings).items():
        if value in (None, "", (), {}, (0.0, 0.0)) or name in ("command", "columns", "units", "packages"):
            continue
        text = json.dumps(value) if isinstance(value, dict | tuple | bool) else str(value)
        rows.append((name.replace("_", " "), text))
    packages = ", ".join(f"{name} {version}" for name, version in settings.packages.items())
    return [*rows, *([("packages", packages)] if packages else [])]


def _episode_row(episode: Episode) -> dict[str, Any]:
    steps = len(episode.steps)
    return {
        "number": episode.number,
        "seed": episode.seed,
        "total_return": episode.total_return,
        "length": steps,
        "ending": ending_of(episode),
        "fallback": episode.count("fallback"),
        "override": episode.count("override"),
        "late": sum(step.late_s > 0 for step in episode.steps),
    }
