"""The borders of a road, where an environment has them: drawn beneath what was driven."""

from __future__ import annotations

import math
from typing import Any

Polyline = tuple[tuple[float, float], ...]
"""Points in metres."""

SPACING_M = 2.0
MAX_POINTS = 20_000
_CONTINUOUS = 2
"""highway-env's `LineType.CONTINUOUS`; larger ones are continuous, too."""


def borders_of(env: Any) -> tuple[Polyline, ...]:
    """The lines that bound the road of `env`; none where it has no lanes that are known here.

    That is an attribute `road_borders` of points `[[x, y], ...]`, or highway-env's road network, whose lanes have lines
    on both sides: those that are continuous bound it.
    """
    inner = env.unwrapped
    try:
        own = getattr(inner, "road_borders", None)
        if own is not None:
            lines = [tuple((float(x), float(y)) for x, y in line) for line in own]
        else:
            lines = _of_lanes(inner.vehicle.road.network.lanes_list())
    except (AttributeError, TypeError, ValueError):
        return ()
    kept, points = [], 0
    for line in lines:
        points += len(line)
        if points > MAX_POINTS:
            break
        if all(map(math.isfinite, (value for point in line for value in point))):
            kept.append(line)
    return tuple(kept)


def _of_lanes(lanes: Any) -> list[Polyline]:
    lines = []
    for lane in lanes:
        pieces = max(1, math.ceil(lane.length / SPACING_M))
        for side, kind in zip((-0.5, 0.5), lane.line_types, strict=False):
            if int(kind) < _CONTINUOUS:
                continue
            along = [lane.length * piece / pieces for piece in range(pieces + 1)]
            points = [lane.position(distance, side * lane.width_at(distance)) for distance in along]
            lines.append(tuple((round(float(x), 2), round(float(y), 2)) for x, y in points))
    return lines
