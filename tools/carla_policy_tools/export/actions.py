"""What a source's action means for a vehicle: the card's `action` section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.source import Source

ASSUMED_LAYOUTS = {1: ("steer",), 2: ("acceleration", "steer")}
"""As highway-env and most CARLA environments order them; three controls have no usual order."""


def describe_action(
    source: Source,
    layout: Sequence[str],
    table: Sequence[Mapping[str, float]],
    given: Mapping[str, Any] | None,
    assumptions: list[str],
) -> dict[str, Any]:
    """The section `action`: as `given` by the user's card, completed with what the action space says.

    What nobody said and had to be assumed is appended to `assumptions`.
    """
    if source.action.choices:
        return _describe_choices(source.action.choices, table or (given or {}).get("table", ()))
    if table:
        raise ExportError("--table: the policy's action is continuous, and needs a --layout")
    low, high = source.action.low, source.action.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ExportError(f"action space [{low.tolist()}, {high.tolist()}]: expected finite bounds")
    names = tuple(layout) or tuple((given or {}).get("layout", ())) or ASSUMED_LAYOUTS.get(len(low), ())
    if not names:
        raise ExportError(
            f"the action has {len(low)} dimensions, and their order is not known: name it with --layout, such as "
            "--layout throttle,brake,steer"
        )
    if len(names) != len(low):
        raise ExportError(f"--layout {','.join(names)}: the action has {len(low)} dimensions")
    if not layout and "layout" not in (given or {}):
        assumptions.append(f"the action is [{', '.join(names)}]; if it is not, say so with --layout")
    action: dict[str, Any] = {
        "layout": list(names),
        "low": low.tolist(),
        "high": high.tolist(),
        "bounding": source.action.bounding,
        **_scales(names, low, high, assumptions if "full_scale" not in (given or {}) else []),
    }
    return {**action, **(given or {}), "layout": list(names)}


def _scales(names: Sequence[str], low: Any, high: Any, assumptions: list[str]) -> dict[str, Any]:
    """Actions beyond -1 to 1 are in units of their own: the largest then stands for full control."""
    largest = np.maximum(np.abs(low), np.abs(high))
    if (largest <= 1.0).all():
        return {}
    scales: dict[str, Any] = {"full_scale": [float(value) for value in largest]}
    if "acceleration" in names and high[names.index("acceleration")] > 0 > low[names.index("acceleration")]:
        place = names.index("acceleration")
        scales["full_scale"][place], scales["full_brake"] = float(high[place]), float(-low[place])
    assumptions.append(f"full control is at the largest action, full_scale {scales['full_scale']}; set it in a --card")
    return scales


def _describe_choices(choices: int, table: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    if not table:
        raise ExportError(
            f"the policy chooses among {choices} actions, and what they do to the vehicle is not known: name a "
            "--table, a YAML or JSON list with {throttle, brake, steer} for each"
        )
    if len(table) != choices:
        raise ExportError(f"--table: the policy chooses among {choices} actions, the table has {len(table)} rows")
    return {"table": [dict(row) for row in table]}
