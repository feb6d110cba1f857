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


def plan(config: RouteConfig, world_map: Any, start: Any, rng: random.Random) -> Route:
    """A route from the `carla.Transform` `start`. Raises `ValueError` where there is no way."""
    begin = world_map.get_waypoint(start.location)
    if begin is None:
        raise ValueError(f"the map has no driving lane near the vehicle at {start.location}")
    planner = global_route_planner(config, world_map)
    if config.destination is None and planner is None:
        return Route(wander(begin, length_m=config.length_m, spacing_m=config.spacing_m, rng=rng))
    spawn_points = world_map.get_spawn_points()
    index = rng.randrange(len(spawn_points)) if config.destination is None else config.destination
    if index >= len(spawn_points):
        raise ValueError(f"route.destination is {index}, the map has {len(spawn_points)} spawn points, from 0")
    target = spawn_points[index].location
    if planner is None:
        return Route(shortest(begin, world_map.get_waypoint(target), spacing_m=config.spacing_m))
    traced = [
        route_point(waypoint, int(option.value)) for waypoint, option in planner.trace_route(start.location, target)
    ]
    return Route(traced)


def global_route_planner(config: RouteConfig, world_map: Any) -> Any | None:
    """CARLA's `GlobalRoutePlanner`, or None where the configuration or the installation has it otherwise."""
    if config.planner == "map" or (config.planner == "auto" and config.destination is None):
        return None
    try:
        module = importlib.import_module("agents.navigation.global_route_planner")
    except ImportError as error:
        if config.planner == "agents":
            raise SimulatorError(
                f"route.planner is agents, which cannot be imported ({error}): put the simulator's PythonAPI/carla "
                "folder on PYTHONPATH and install networkx and shapely, or set route.planner to map"
            ) from error
        return None
    return module.GlobalRoutePlanner(world_map, config.spacing_m)


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
