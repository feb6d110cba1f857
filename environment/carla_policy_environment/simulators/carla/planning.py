"""Routes over a `carla.Map`: by CARLA's own GlobalRoutePlanner where its `agents` are there, else by waypoints.

`agents` is no part of the client package: it lies in the simulator's PythonAPI/carla folder, which has to be on
PYTHONPATH, and needs networkx and shapely.
"""

from __future__ import annotations

import importlib
import math
import random
from collections import deque
from typing import Any

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla.config import RouteConfig
from carla_policy_environment.simulators.carla.route import LANE_FOLLOW, Route, RoutePoint

MAX_SEARCHED = 500_000


class Planner:
    """Plans routes over one map; CARLA's graph of it, which takes seconds to build, is built when first needed."""

    def __init__(self, config: RouteConfig, world_map: Any) -> None:
        self._config, self._map = config, world_map
        self._graph: Any = None

    def plan(self, start: Any, rng: random.Random, *, destination: int | None = None) -> Route:
        """A route from the `carla.Transform` `start`; `destination` is over the configuration's.

        Raises `ValueError` where there is no way, `SimulatorError` where `agents` are demanded and not there.
        """
        config, target = self._config, self._config.destination if destination is None else destination
        begin = self._map.get_waypoint(start.location)
        if begin is None:
            raise ValueError(f"the map has no driving lane near the vehicle at {start.location}")
        graph = None if config.planner == "map" or (config.planner == "auto" and target is None) else self._global()
        if target is None and graph is None:
            return Route(wander(begin, length_m=config.length_m, spacing_m=config.spacing_m, rng=rng))
        points = self._map.get_spawn_points()
        index = rng.randrange(len(points)) if target is None else target
        if index >= len(points):
            raise ValueError(f"route.destination is {index}, the map has {len(points)} spawn points, from 0")
        place = points[index].location
        if graph is None:
            return Route(shortest(begin, self._map.get_waypoint(place), spacing_m=config.spacing_m))
        try:
            traced = graph.trace_route(start.location, place)
        except Exception as error:  # networkx says in its own ways that there is no path
            raise ValueError(f"CARLA's GlobalRoutePlanner found no way to spawn point {index}: {error}") from error
        return Route([route_point(waypoint, int(option.value)) for waypoint, option in traced])

    def _global(self) -> Any:
        """CARLA's `GlobalRoutePlanner`; None where `agents` are not there and not demanded."""
        if self._graph is None:
            try:
                module = importlib.import_module("agents.navigation.global_route_planner")
            except ImportError as error:
                if self._config.planner == "agents":
                    raise SimulatorError(
                        f"route.planner is agents, which cannot be imported ({error}): put the simulator's "
                        "PythonAPI/carla folder on PYTHONPATH and install networkx and shapely, or set it to map"
                    ) from error
                return None
            self._graph = module.GlobalRoutePlanner(self._map, self._config.spacing_m)
        return self._graph


def route_point(waypoint: Any, command: int = LANE_FOLLOW) -> RoutePoint:
    """A `carla.Waypoint` as plain numbers."""
    place = waypoint.transform
    return RoutePoint(
        x=place.location.x,
        y=place.location.y,
        z=place.location.z,
        heading=math.radians(place.rotation.yaw),
        in_junction=waypoint.is_junction,
        command=command if command > 0 else LANE_FOLLOW,
    )


def wander(begin: Any, *, length_m: float, spacing_m: float, rng: random.Random) -> list[RoutePoint]:
    """Along the lane from the waypoint `begin`; `rng` draws where it forks; ends early where the road does."""
    points, waypoint = [route_point(begin)], begin
    while len(points) * spacing_m <= length_m:
        following = sorted(waypoint.next(spacing_m), key=_place)
        if not following:
            break
        waypoint = following[0] if len(following) == 1 else rng.choice(following)
        points.append(route_point(waypoint))
    return points


def shortest(begin: Any, goal: Any, *, spacing_m: float) -> list[RoutePoint]:
    """The shortest way along lanes, without changing them. Raises `ValueError` where there is none."""
    seen = {_cell(begin, spacing_m)}
    waiting: deque[Any] = deque([(begin, None)])
    while waiting and len(seen) < MAX_SEARCHED:
        link = waiting.popleft()
        waypoint = link[0]
        if _place(waypoint)[:3] == _place(goal)[:3] and abs(waypoint.s - goal.s) <= spacing_m:
            return _traced(link)
        for following in sorted(waypoint.next(spacing_m), key=_place):
            cell = _cell(following, spacing_m)
            if cell not in seen:
                seen.add(cell)
                waiting.append((following, link))
    raise ValueError(
        f"no way along lanes from road {begin.road_id} lane {begin.lane_id} to road {goal.road_id} "
        f"lane {goal.lane_id}: choose another destination, or CARLA's agents as planner, which changes lanes"
    )


def _traced(link: Any) -> list[RoutePoint]:
    points = []
    while link is not None:
        waypoint, link = link
        points.append(route_point(waypoint))
    return points[::-1]


def _place(waypoint: Any) -> tuple[int, int, int, float]:
    return waypoint.road_id, waypoint.section_id, waypoint.lane_id, waypoint.s


def _cell(waypoint: Any, spacing_m: float) -> tuple[int, int, int, int]:
    return (*_place(waypoint)[:3], round(2 * waypoint.s / spacing_m))
