"""What `drive` tells people: a table of how it went, and what happened when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from carla_policy_tools.console import out
from carla_policy_tools.driving.records import Drive, Event

LONGEST_LIST = 20


def print_drive(drive: Drive) -> None:
    """Settings in a line, figures in a table, then events."""
    out.print(_headline(drive), markup=False)
    lines = dict(figures(drive))
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        out.print(f"{name:<{width}}{value}", markup=False)
    events = drive.events
    if events:
        out.print("what happened when:")
    for event in events[:LONGEST_LIST]:
        out.print("  " + event_line(event), markup=False)
    if len(events) > LONGEST_LIST:
        out.print(f"  and {len(events) - LONGEST_LIST} more, all in drive.json")


def event_line(event: Event) -> str:
    """`12.300 s  episode 0 step 123  fallback: late  4 steps, 0.352 s`."""
    where = f"{event.time_s:9.3f} s  episode {event.episode} step {event.step:<4d}"
    if event.kind == "note":
        return f"{where}  -- {event.detail}"
    what = f"{event.kind}: {event.detail}" if event.detail else event.kind
    many = "step" if event.steps == 1 else "steps"
    return f"{where}  {what:.120}  ({event.steps} {many}, {event.duration_s:.3f} s)"


def figures(drive: Drive) -> Iterator[tuple[str, str]]:
    """Name and value of each line of the table."""
    summary, settings = drive.summary, drive.settings
    steps = summary["steps"]
    yield "return", _spread(summary["returns"])
    yield "length, steps", _spread(summary["lengths"], digits=0)
    yield (
        "endings",
        ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary["endings"].items() if count),
    )
    jerk = summary["jerk"]
    if jerk:
        yield "jerk", f"mean {jerk['mean']:.2f}, max {jerk['max']:.2f} {jerk['unit']} ({jerk['source']})"
    yield "deadline misses", _share(summary["deadline_misses"], steps)
    yield "fallback steps", _share(summary["sources"]["fallback"], steps) + _listed(summary["reasons"])
    if summary["sources"]["override"]:
        yield "override steps", _share(summary["sources"]["override"], steps)
    yield "server's safe action", _share(summary["safe_actions"], steps)
    if summary["interventions"]:
        yield "interventions", ", ".join(f"{kind} {count}" for kind, count in summary["interventions"].items())
    if summary["latency_s"]:
        latency = {name: f"{value * 1e3:.2f}" for name, value in summary["latency_s"].items()}
        deadline = f", deadline {settings.deadline_s * 1e3:g} ms" if settings.deadline_s else ""
        yield "latency", f"P50 {latency['p50']}, P99 {latency['p99']}, longest {latency['max']} ms{deadline}"
    if settings.period_s:
        yield "periods overrun", _overruns(summary, settings.period_s)
    if len(summary["versions"]) > 1:
        yield "answered by", ", ".join(f"{version} {count}" for version, count in summary["versions"].items())
    if drive.link:
        yield "link", ", ".join(f"{count} {name}" for name, count in drive.link.items() if count)


def _headline(drive: Drive) -> str:
    settings = drive.settings
    pace = f"{1 / settings.period_s:g} Hz in real time" if settings.period_s else "as fast as possible"
    low, high = settings.latency_s
    span = f"{low * 1e3:g}" if low == high else f"{low * 1e3:g} to {high * 1e3:g}"
    bad = [f"{span} ms added" if high else "", f"{settings.loss:.1%} lost" if settings.loss else ""]
    parts = (
        f"{settings.version} in {settings.environment}",
        f"{len(drive.episodes)} of {settings.episodes} episodes from seed {settings.seed}",
        pace,
        f"fallback {settings.fallback}",
        *filter(None, bad),
    )
    return ", ".join(parts) + (", stopped" if drive.stopped else "")


def _overruns(summary: Mapping[str, Any], period_s: float) -> str:
    count, late = summary["overruns"], summary["late_s"]
    text = f"{_share(count, summary['steps'])}, {period_s * 1e3:g} ms each"
    if not count:
        return text
    by = f", {summary['overruns_by_simulator']} of them by what the simulator took"
    return f"{text}, P99 {late['p99'] * 1e3:.2f}, longest {late['max'] * 1e3:.2f} ms{by}"


def _spread(values: Mapping[str, float] | None, digits: int = 2) -> str:
    if values is None:
        return "none"
    mean, std, low, high = (f"{values[name]:.{digits}f}" for name in ("mean", "std", "min", "max"))
    return f"mean {mean} ± {std}, {low} to {high}"


def _share(count: int, whole: int) -> str:
    return f"{count} of {whole}" + (f" ({count / whole:.1%})" if count else "")


def _listed(reasons: Mapping[str, int]) -> str:
    fallbacks = [
        f"{reason.removeprefix('fallback: ')} {count}"
        for reason, count in reasons.items()
        if reason.startswith("fallback")
    ]
    return ": " + ", ".join(fallbacks) if fallbacks else ""
