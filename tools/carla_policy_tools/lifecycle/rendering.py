"""Status and history as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from carla_policy_tools.lifecycle.events import Event
from carla_policy_tools.lifecycle.status import Status


def render_status(found: Status) -> RenderableType:
    """Server, versions, drift and the last changes."""
    registry, endpoint = found.registry, found.endpoint
    server = "no server runs" if endpoint is None else f"{endpoint.state} at {endpoint.ports.url('inference')}"
    versions = Table("version", "", "workers", "queued", "profile", "archive", "registered", box=None, padding=(0, 1))
    for version, shown in found.versions().items():
        versions.add_row(version, *_version_row(found, version, shown))
    lines: list[RenderableType] = [Text(f"server: {server}"), versions]
    lines += [Text(f"under way: {change}") for change in found.changes]
    lines += [Text(f"in the store, not registered: {', '.join(found.unregistered)}")] if found.unregistered else []
    lines += [Text(f"drift: {difference}", style="red") for difference in found.drift]
    if registry.history:
        lines += [Text(), history_table(registry.history[-5:])]
    return Group(*lines)


def _version_row(found: Status, version: str, shown: dict[str, Any]) -> list[str]:
    notes = [f"{(found.registry.split or {})[version]} %"] if version in (found.registry.split or {}) else []
    notes = ["promoted", *notes] if version == found.registry.promoted else notes
    states = [worker["status"] for worker in shown["workers"]]
    return [
        ", ".join(notes) if shown["declared"] else "undeclared",
        ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))) or "-",
        str(shown["queued"]) if states else "-",
        shown.get("profile", "-"),
        shown.get("digest", "sha256:-")[7:19],
        str(shown.get("registered", "-"))[:10],
    ]


def history_table(events: Sequence[Event]) -> Table:
    """Who changed what, when and why."""
    table = Table("#", "when", "who", "what", "why", box=None, padding=(0, 1))
    for event in events:
        what = [event.verb, event.version or ""]
        if event.verb in ("promote", "rollback") and event.previous:
            what.append(f"(was {event.previous})")
        if event.verb == "split":
            what.append(" ".join(f"{version}={share}" for version, share in (event.shares or {}).items()) or "off")
        why = "; ".join(filter(None, [event.reason, str(event.gate or "")]))
        when = event.at.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(str(event.sequence), when, event.by, Text(" ".join(filter(None, what))), Text(why))
    return table
