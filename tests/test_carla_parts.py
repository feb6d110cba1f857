"""The parts of the CARLA simulator that need no server: on the client package's own types and a real `carla.Map`."""

# What is imported after `importorskip` needs the client package.
# ruff: noqa: E402

from __future__ import annotations

import json
import math
import random
import re
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

carla = pytest.importorskip("carla", reason="needs CARLA's client package: pip install carla==0.9.16")

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla import CarlaConfig, load_config, package
from carla_policy_environment.simulators.carla.config import (
    Column,
    EpisodeConfig,
    LidarConfig,
    RewardConfig,
    RouteConfig,
)
from carla_policy_environment.simulators.carla.ego import VehicleState
from carla_policy_environment.simulators.carla.observation import PolicyRow, dict_space
from carla_policy_environment.simulators.carla.planning import Planner, shortest, wander
from carla_policy_environment.simulators.carla.rays import Box, border_distances, closing_speed, vehicle_distances
from carla_policy_environment.simulators.carla.rewards import StepFacts, outcome, reward
from carla_policy_environment.simulators.carla.route import LANE_FOLLOW, LEFT, RIGHT, STRAIGHT, Route, RoutePoint
from carla_policy_environment.simulators.carla.sensors import lidar_sectors
from carla_policy_environment.simulators.carla.snapshots import weather_fields, weather_of
from tests import carla_roads


@pytest.fixture(scope="module")
def fork():
    return carla.Map("fork", carla_roads.opendrive())


def driving_at(fork, x, y=1.75):
    return fork.get_waypoint(carla.Location(x=x, y=y))


class TestVersions:
    @pytest.mark.parametrize("version", ["0.9.15", "0.9.16", "0.9.15-12-gabcdef0-dirty"])
    def test_client_and_server_of_one_version_fit(self, version):
        package.require_same_version(version[:6], version)

    @pytest.mark.parametrize(
        ("client", "server", "advice"),
        [
            ("0.9.16", "0.9.15", "install carla==0.9.15"),
            ("0.9.14", "0.9.14", "not supported"),
            ("0.10.0", "0.10.0", "not supported"),
            ("0.9.16", "unknown", "the simulator's version"),
        ],
    )
    def test_others_are_refused_with_advice(self, client, server, advice):
        with pytest.raises(SimulatorError, match=advice):
            package.require_same_version(client, server)

    def test_a_package_that_does_not_load_says_what_it_needs(self, monkeypatch):
        def broken(_):
            raise ImportError("libz.so.1: cannot open shared object file")

        monkeypatch.setattr(package.importlib, "import_module", broken)
        with pytest.raises(SimulatorError, match=r"libz\.so\.1.*zlib1g"):
            package.client_package()

    def test_one_that_is_missing_says_which_to_install(self, monkeypatch):
        def missing(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(package.importlib, "import_module", missing)
        with pytest.raises(SimulatorError, match=r"pip install carla==0\.9\.16"):
            package.client_package()

    def test_a_folder_named_carla_is_not_taken_for_it(self, monkeypatch):
        monkeypatch.setattr(package.importlib, "import_module", lambda name: types.ModuleType(name))
        with pytest.raises(SimulatorError, match="not CARLA's client"):
            package.client_package()


class TestConfiguration:
    def test_yaml_and_json_say_the_same(self, tmp_path):
        (tmp_path / "a.yaml").write_text("world: {map: Town03, fixed_delta_s: 0.1}\ntraffic: {vehicles: 3}\n")
        (tmp_path / "a.json").write_text(
            json.dumps({"world": {"map": "Town03", "fixed_delta_s": 0.1}, "traffic": {"vehicles": 3}})
        )
        assert load_config(tmp_path / "a.yaml") == load_config(tmp_path / "a.json")
        assert load_config(tmp_path / "a.yaml").traffic.vehicles == 3

    @pytest.mark.parametrize(
        ("written", "complaint"),
        [
            ({"wrold": {}}, "wrold: Extra inputs"),
            ({"world": {"fixed_delta_s": 0.2}}, "could not keep up"),
            ({"world": {"no_rendering": True}}, "cameras blind"),
            ({"traffic": {"port": 2001}}, "one of the simulator's own three"),
            ({"recording": "drive.log"}, "must contain {episode}"),
            ({"ego": {"settle_ticks": 0}}, "ego.settle_ticks"),
            ({"observation": {"sensors": [{"source": "a", "low": 2, "high": 1}]}}, "not below high"),
            ({"timeout_s": float("nan")}, "timeout_s"),
        ],
    )
    def test_what_cannot_be_is_refused_by_file_and_field(self, tmp_path, written, complaint):
        path = tmp_path / "wrong.json"
        path.write_text(json.dumps(written))
        with pytest.raises(ValueError, match=complaint) as refused:
            load_config(path)
        assert "wrong.json" in str(refused.value)

    def test_the_documentation_shows_every_field_with_its_default(self):
        text = (Path(__file__).parents[1] / "environment/carla.md").read_text(encoding="utf-8")
        columns, defaults = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
        PolicyRow(
            CarlaConfig.model_validate(columns).observation.sensors, dict_space(CarlaConfig.model_validate(columns))
        )
        documented = CarlaConfig.model_validate(defaults)
        assert documented == CarlaConfig()
        for section in [documented, *(value for _, value in documented if isinstance(value, BaseModel))]:
            assert section.model_fields_set == set(type(section).model_fields)

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path):
        for name, text in (("absent.yaml", None), ("a.toml", "x = 1"), ("b.yaml", "a: [")):
            if text is not None:
                (tmp_path / name).write_text(text)
            with pytest.raises(ValueError, match=name):
                load_config(tmp_path / name)


class TestRoutes:
    def test_wandering_follows_the_lane_and_draws_at_forks_by_its_seed(self, fork):
        ends = set()
        for seed in range(8):
            first, again = (
                wander(driving_at(fork, 20), length_m=130, spacing_m=1.0, rng=random.Random(seed)) for _ in range(2)
            )
            assert first == again
            ends.add(round(first[-1].y / 20))
        assert ends == {0, -1}, "one seed goes straight on, another turns left"

    def test_commands_tell_how_a_junction_is_left(self, fork):
        straight = Route(shortest(driving_at(fork, 100), driving_at(fork, 160), spacing_m=1.0))
        left = Route(shortest(driving_at(fork, 100), driving_at(fork, 136.75, -40), spacing_m=1.0))
        assert {int(c) for c in straight.commands} == {LANE_FOLLOW, STRAIGHT}
        assert {int(c) for c in left.commands} == {LANE_FOLLOW, LEFT}
        assert left.locate(105, 1.75, 0.0, near_m=5).command == LEFT, "told within 20 m of the junction"
        assert left.locate(101, 1.75, 0.0, near_m=1).command == LEFT
        far = Route(shortest(driving_at(fork, 50), driving_at(fork, 136.75, -40), spacing_m=1.0))
        assert far.locate(52, 1.75, 0.0, near_m=2).command == LANE_FOLLOW

    def test_a_destination_against_the_lanes_has_no_way(self, fork):
        with pytest.raises(ValueError, match="no way along lanes from road 2"):
            shortest(driving_at(fork, 160), driving_at(fork, 20), spacing_m=1.0)

    def test_a_vehicle_is_located_to_the_right_as_positive(self, fork):
        route = Route(wander(driving_at(fork, 10), length_m=100, spacing_m=1.0, rng=random.Random(0)))
        place = route.locate(30.0, 2.25, math.radians(10), near_m=18.0)
        assert place.done_m == pytest.approx(20.0, abs=1e-4)
        assert place.lane_offset == pytest.approx(0.5, abs=1e-4)
        assert place.heading_error == pytest.approx(-math.radians(10), abs=1e-4)
        behind = route.locate(-30.0, 1.75, 0.0, near_m=0.0)
        assert (behind.lane_offset, behind.deviation_m) == pytest.approx((0.0, 40.0), abs=1e-3)
        ahead = route.ahead(place.done_m, np.array([2.0, 1000.0]), (30.0, 2.25, 0.0))
        assert ahead[0] == pytest.approx([2.0, -0.5], abs=1e-4)
        assert ahead[1][0] == pytest.approx(route.points[-1][0] - 30.0, abs=1e-4)

    def test_a_place_is_looked_for_near_the_last_one_where_a_route_crosses_itself(self):
        out = [RoutePoint(x, 0.0, 0.0, 0.0) for x in range(101)]
        back = [RoutePoint(100.0 - x, 0.5, 0.0, math.pi) for x in range(101)]
        route = Route(out + back)
        assert route.locate(50, 0.3, 0.0, near_m=49).done_m == pytest.approx(50)
        assert route.locate(50, 0.2, 0.0, near_m=149).done_m == pytest.approx(150.5)

    def test_headings_turn_evenly_through_the_half_circle(self):
        route = Route([RoutePoint(0, 0, 0, math.radians(170)), RoutePoint(-1, 0, 0, math.radians(-170))])
        assert abs(route.heading_at(0.5)) == pytest.approx(math.pi)

    def test_a_junction_to_the_right_is_told_so(self):
        points = [RoutePoint(0, 0, 0, 0.0), RoutePoint(1, 0, 0, 0.0, True), RoutePoint(2, 1, 0, math.pi / 2)]
        assert list(Route(points).commands) == [LANE_FOLLOW, RIGHT, LANE_FOLLOW]

    def test_one_point_is_no_route(self):
        with pytest.raises(ValueError, match="two points"):
            Route([RoutePoint(0, 0, 0, 0.0)] * 3)

    def test_without_agents_the_map_is_the_planner_unless_they_are_demanded(self, fork):
        start = carla.Transform(carla.Location(x=20, y=1.75))
        assert Planner(RouteConfig(length_m=30), fork).plan(start, random.Random(0)).length_m == pytest.approx(30)
        with pytest.raises(SimulatorError, match="PythonAPI/carla"):
            Planner(RouteConfig(planner="agents"), fork).plan(start, random.Random(0))
        with pytest.raises(ValueError, match="0 spawn points"):
            Planner(RouteConfig(), fork).plan(start, random.Random(0), destination=3)

    def test_agents_are_asked_as_carla_documents_them(self, fork, monkeypatch):
        class GlobalRoutePlanner:
            def __init__(self, wmap, sampling_resolution):
                assert (wmap, sampling_resolution) == (there, 1.0)

            def trace_route(self, origin, destination):
                assert (origin.x, destination.x) == (20.0, 60.0)
                option = types.SimpleNamespace(value=6)
                return [(driving_at(fork, x), option) for x in range(20, 61)]

        module = types.ModuleType("agents.navigation.global_route_planner")
        module.GlobalRoutePlanner = GlobalRoutePlanner
        monkeypatch.setattr("importlib.import_module", lambda name: {module.__name__: module}[name])
        there = types.SimpleNamespace(
            get_waypoint=fork.get_waypoint, get_spawn_points=lambda: [carla.Transform(carla.Location(x=60, y=1.75))]
        )
        start = carla.Transform(carla.Location(x=20, y=1.75))
        route = Planner(RouteConfig(destination=0), there).plan(start, random.Random(0))
        assert route.length_m == pytest.approx(40, abs=1e-3)
        assert set(route.commands) == {6}


class TestRays:
    def test_the_border_is_found_to_millimetres(self):
        def on_road(_, y):
            return -3.0 <= y <= 2.0

        found = border_distances(on_road, (0.0, 0.0, 0.0), [math.pi / 2, -math.pi / 2, math.pi / 6, 0.0], 40.0)
        assert found == pytest.approx([2.0, 3.0, 4.0, 40.0], abs=0.003)
        assert border_distances(on_road, (0.0, 5.0, 0.0), [0.0], 40.0) == pytest.approx([0.0])
        turned = border_distances(on_road, (0.0, 0.0, math.pi / 2), [0.0], 40.0)
        assert turned == pytest.approx([2.0], abs=0.003), "angles turn with the vehicle"

    def test_a_vehicle_is_a_turned_rectangle(self):
        ahead = Box(10.0, 0.0, 0.0, 2.0, 1.0, velocity=(4.0, 0.0))
        beside = Box(0.0, 5.0, math.pi / 2, 2.0, 1.0)
        distances, which = vehicle_distances([ahead, beside], (0.0, 0.0, 0.0), [0.0, math.pi / 2, math.pi], 40.0)
        assert distances == pytest.approx([8.0, 3.0, 40.0])
        assert list(which) == [0, 1, -1]
        ego = VehicleState((0, 0, 0), (0, 0, 0), (10.0, 0, 0), (0, 0, 0), (0, 0, 0))
        assert closing_speed(ego, [ahead, beside], [0, 90, 180], distances, which) == pytest.approx(6.0)
        assert closing_speed(ego, [beside], [90], distances[1:2], np.array([0])) == 0.0

    def test_lidar_returns_fall_into_sectors_and_the_ground_into_none(self):
        points = np.array(
            [[7, 0.01, 0, 1], [3, 0.02, 0, 1], [0, 5, 0, 1], [0, 2, -2.4, 1], [-4, -0.01, 0, 1]], np.float32
        )
        found = lidar_sectors(points, LidarConfig(rays=8, range_m=50))
        assert found == pytest.approx([4.0, 50, 50, 50, 3.0, 50, 5.0, 50], abs=0.01)
        assert lidar_sectors(points[:0], LidarConfig(rays=3, range_m=50)) == pytest.approx([50, 50, 50])


def facts(**changed):
    usual = {
        "step": 1,
        "duration_s": 0.1,
        "progress_m": 0.8,
        "remaining_m": 50.0,
        "lane_offset": 0.5,
        "deviation_m": 0.5,
        "speed": 8.0,
        "steering_change": 0.2,
        "strongest_impulse": None,
        "markings": (),
        "off_road": False,
    }
    return StepFacts(**(usual | changed))


class TestEndsAndRewards:
    @pytest.mark.parametrize(
        ("changed", "config", "ends"),
        [
            ({}, {}, (False, False, None)),
            ({"strongest_impulse": 0.0}, {}, (True, False, "collision")),
            ({"strongest_impulse": 9.0}, {"collision_impulse_ns": 10.0}, (False, False, None)),
            ({"strongest_impulse": 9.0}, {"end_on_collision": False}, (False, False, None)),
            ({"off_road": True}, {}, (True, False, "off_road")),
            ({"off_road": True}, {"end_off_road": False}, (False, False, None)),
            ({"markings": ("Broken",)}, {"end_on_lane_invasion": "any"}, (True, False, "lane_invasion")),
            ({"markings": ("Broken",)}, {"end_on_lane_invasion": "solid"}, (False, False, None)),
            ({"markings": ("SolidBroken",)}, {"end_on_lane_invasion": "solid"}, (True, False, "lane_invasion")),
            ({"markings": ("Solid",)}, {}, (False, False, None)),
            ({"deviation_m": 31.0}, {}, (True, False, "off_route")),
            ({"deviation_m": 31.0}, {"max_route_deviation_m": None}, (False, False, None)),
            ({"remaining_m": 2.0}, {}, (True, False, "goal")),
            ({"remaining_m": 2.0, "off_road": True}, {}, (True, False, "off_road")),
            ({"step": 1000}, {"max_steps": 1000}, (False, True, "max_steps")),
        ],
    )
    def test_the_first_reason_ends_the_episode(self, changed, config, ends):
        end = outcome(facts(**changed), EpisodeConfig(**config))
        assert (end.terminated, end.truncated, end.reason) == ends

    def test_dense_is_progress_less_costs(self):
        config, going = RewardConfig(), outcome(facts(), EpisodeConfig())
        assert reward(facts(), going, config) == pytest.approx(0.8 - 0.2 * 0.5 * 0.1 - 0.1 * 0.2)
        too_fast = reward(facts(speed=14.0), going, config)
        assert too_fast == pytest.approx(reward(facts(), going, config) - 0.5 * 4.0 * 0.1)
        crashed = outcome(facts(strongest_impulse=1.0), EpisodeConfig())
        assert reward(facts(), crashed, config) == pytest.approx(reward(facts(), going, config) - 20.0)
        there = outcome(facts(remaining_m=0.0), EpisodeConfig())
        assert reward(facts(), there, config) == pytest.approx(reward(facts(), going, config) + 20.0)

    def test_sparse_is_how_it_ended(self):
        config = RewardConfig(type="sparse")
        ends = [facts(), facts(remaining_m=0.0), facts(off_road=True), facts(step=1000)]
        assert [reward(f, outcome(f, EpisodeConfig(max_steps=1000)), config) for f in ends] == [0.0, 1.0, -1.0, 0.0]


class TestPolicyRow:
    def test_columns_are_scaled_and_clipped_ones_are_named(self):
        columns = (
            Column(source="navigation.waypoints.0", scale=0.1),
            Column(source="navigation.lane_offset", low=-1.0, high=1.0),
        )
        row = PolicyRow(columns, dict_space(CarlaConfig()))
        assert row.names == (
            "measurements.speed",
            "measurements.steering",
            "navigation.waypoints.0.0",
            "navigation.waypoints.0.1",
            "navigation.lane_offset",
        )
        tree = {
            "measurements": {"speed": np.array([8.0]), "steering": np.array([0.5])},
            "navigation": {"waypoints": np.array([[2.0, -1.0], [4.0, 0.0]]), "lane_offset": np.array([3.0])},
        }
        values, clipped = row.row(tree)
        assert values == pytest.approx([8.0, 0.5, 0.2, -0.1, 1.0])
        assert clipped == ["navigation.lane_offset"]
        assert row.space.contains(values)
        assert (row.space.low[4], row.space.high[4]) == (-1.0, 1.0)

    @pytest.mark.parametrize(
        ("source", "complaint"),
        [
            ("navigation.lane", "there is"),
            ("navigation", "name one of"),
            ("navigation.waypoints.10", "shape"),
            ("rays", "there is"),
        ],
    )
    def test_a_source_that_is_not_observed_is_refused(self, source, complaint):
        with pytest.raises(ValueError, match=complaint):
            PolicyRow((Column(source=source),), dict_space(CarlaConfig()))

    def test_a_negative_scale_turns_bounds_around(self):
        row = PolicyRow((Column(source="measurements.throttle", scale=-2.0, offset=1.0),), dict_space(CarlaConfig()))
        assert (row.space.low[2], row.space.high[2]) == (-1.0, 1.0)


class TestWeather:
    def test_presets_and_fields_are_carla_s_own(self):
        noon = weather_of(carla, "ClearNoon")
        assert weather_fields(noon) == weather_fields(carla.WeatherParameters.ClearNoon)
        assert weather_of(carla, weather_fields(noon)).sun_altitude_angle == noon.sun_altitude_angle
        assert weather_of(carla, {"fog_density": 80}).fog_density == 80.0

    @pytest.mark.parametrize(("chosen", "complaint"), [("Sunny", "ClearNoon"), ({"fog": 1.0}, "fog_density")])
    def test_others_are_refused_with_what_there_is(self, chosen, complaint):
        with pytest.raises(ValueError, match=complaint):
            weather_of(carla, chosen)
