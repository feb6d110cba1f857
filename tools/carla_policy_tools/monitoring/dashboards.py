"""Grafana's dashboards as files: `python -m carla_policy_tools.monitoring.dashboards` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carla_policy_tools.monitoring.driving import DRIVING
from carla_policy_tools.monitoring.operating import OPERATING
from carla_policy_tools.paths import CONFIG

DASHBOARDS = (OPERATING, DRIVING)
DIRECTORY = CONFIG / "grafana" / "dashboards"


def rendered() -> dict[Path, str]:
    """What each dashboard's file has to hold."""
    return {
        DIRECTORY / f"{board.uid}.json": json.dumps(board.to_json(), indent=2, ensure_ascii=False) + "\n"
        for board in DASHBOARDS
    }


def panel_queries(dashboard: Mapping[str, Any], variables: Mapping[str, str]) -> Iterator[tuple[Any, list[str]]]:
    """Each panel of a dashboard's JSON that shows data, and its expressions with `variables` put in."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel, [substituted(target["expr"], variables) for target in panel["targets"]]


def substituted(text: str, variables: Mapping[str, str]) -> str:
    """`text` with the value of each variable in the place of `$name`."""
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    return text


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
        print(path)
