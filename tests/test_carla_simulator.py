"""The CARLA simulator against the stand-in of a server (`carla_server.py`), on the client package's own types.

What a real server would show beside: vehicle dynamics, rendering, the Traffic Manager's and walkers' behaviour.
"""

# What is imported after `importorskip` needs the client package.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

carla = pytest.importorskip("carla", reason="needs CARLA's client package: pip install carla==0.9.16")

from gymnasium.utils.env_checker import data_equivalence

from carla_policy_environment.service.command import CarlaOptions, simulator_maker
from carla_policy_environment.simulators.base import InvalidOptions, SimulatorError
from carla_policy_environment.simulators.carla import CarlaConfig, CarlaSimulator, configured, load_config
from tests.carla_server import Server, Vehicle, Walker
from tests.environment_services import Served

CAMERA = {"width": 8, "height": 6}
GO, STOP, RIGHT = (np.array(action, np.float32) for action in ([0, 1, 0], [0, 0, 1], [1, 1, 0]))
CONFIGS = Path(__file__).parents[1] / "environment/configs"


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def made(server):
    """Makes simulators of a configuration, closed in the end."""
    simulators = []

    def make(**sections):
        sections.setdefault("sensors", {"camera": CAMERA})
        config = CarlaConfig.model_validate(sections)
        simulators.append(CarlaSimulator(config, client_factory=server.client))
        return simulators[-1]

    yield make
    for simulator in simulators:
        simulator.close()


def settings_of(server):
    kept = server.settings
    return kept.synchronous_mode, kept.fixed_delta_seconds


class TestTheWorld:
    def test_it_takes_the_clock_and_gives_it_back(self, server, made):
        server.settings.fixed_delta_seconds = 0.02
        simulator = made(traffic={"vehicles": 1, "walkers": 1})
        simulator.reset(1, {})
        assert settings_of(server) == (True, 0.05)
        assert server.managers[8000]._synchronous
        simulator.close()
        assert settings_of(server) == (False, 0.02)
        assert server.actors == {}
        assert server.managers == {}
        assert server.log.index("stopped sensor.camera.rgb") < server.log.index("destroyed sensor.camera.rgb")
        assert server.log.index("destroyed sensor.camera.rgb") < server.log.index("destroyed vehicle.tesla.model3")
        simulator.close()

    def test_a_world_found_synchronous_is_left_so_or_let_run(self, server, made, caplog):
        server.settings.synchronous_mode = True
        made().close()
        assert "already in synchronous mode" in caplog.text
        assert server.settings.synchronous_mode
        made(world={"on_close": "asynchronous"}).close()
        assert not server.settings.synchronous_mode

    def test_another_version_is_refused_before_anything_changes(self, server, made):
        server.version = "0.9.15"
        with pytest.raises(SimulatorError, match=r"install carla==0\.9\.15"):
            made()
        assert "apply_settings" not in server.log
        assert made(version_check=False).details["carla"] == "0.9.15"

    @pytest.mark.parametrize(
        ("sections", "complaint"),
        [
            ({"world": {"map": "Town77"}}, "no map Town77; it has fork, other"),
            ({"world": {"weather": "Sunny"}}, "no preset 'Sunny'"),
            ({"observation": {"sensors": [{"source": "rays.border"}]}}, "rays"),
        ],
    )
    def test_what_it_does_not_have_is_told_and_the_world_left_as_found(self, server, made, sections, complaint):
        with pytest.raises((SimulatorError, ValueError), match=complaint):
            made(**sections)
        assert settings_of(server) == (False, None)

    def test_the_map_is_loaded_only_if_it_is_another(self, server, made):
        made(world={"map": "fork"})
        assert not any(call.startswith("load_world") for call in server.log)
        assert made(world={"map": "other"}).environment == "other"
        assert "load_world other" in server.log

    def test_what_a_crashed_run_left_is_taken_away_and_nothing_else(self, server, made):
        world = server.client("", 0).get_world()
        library = world.get_blueprint_library()
        for role, x in (("hero", 20.0), ("autopilot", 60.0)):
            blueprint = library.find("vehicle.audi.tt")
            blueprint.set_attribute("role_name", role)
            vehicle = world.spawn_actor(blueprint, carla.Transform(carla.Location(x=x, y=1.75, z=0.5)))
            world.spawn_actor(library.find("sensor.camera.rgb"), carla.Transform(), attach_to=vehicle)
        made()
        assert sorted(actor.type_id for actor in server.actors.values()) == ["sensor.camera.rgb", "vehicle.audi.tt"]
        assert [a.attributes["role_name"] for a in server.of_type("vehicle.*")] == ["autopilot"]

    def test_a_server_that_is_away_is_an_error_and_a_reset_connects_anew(self, server, made):
        simulator = made()
        simulator.reset(1, {})
        server.down = True
        with pytest.raises(SimulatorError, match=r"127\.0\.0\.1:2000 did not carry out commands: time-out"):
            simulator.step(GO)
        server.down = False
        with pytest.raises(SimulatorError, match="reset, which connects anew"):
            simulator.step(GO)
        simulator.reset(1, {})
        simulator.step(GO)
        assert len(server.of_type("vehicle.*")) == 1
        simulator.close()
        assert settings_of(server) == (False, None)

    def test_closing_waits_few_times_for_a_server_that_is_away(self, server, made):
        simulator = made(traffic={"vehicles": 1})
        simulator.reset(1, {})
        server.down = True
        simulator.close()
        assert server.waits <= 3, "each may take as long as the time-out of closing"
        assert server.log[-1] == "apply_settings", "the server may be back by then"

    def test_every_episode_has_its_recording(self, server, made):
        simulator = made(recording="/logs/drive-{episode}.log")
        simulator.reset(1, {})
        simulator.reset(2, {})
        simulator.close()
        assert server.recordings == ["/logs/drive-1.log", "/logs/drive-2.log"]
        assert server.log.count("stop_recorder") == 2


class TestEpisodes:
    def test_observations_are_of_their_space_and_of_their_frame(self, made):
        simulator = made(sensors={"camera": CAMERA, "lidar": {}, "gnss": True, "imu": True}, observation={"rays": {}})
        observation, info = simulator.reset(3, {})
        for action in (GO, GO, RIGHT, STOP):
            assert simulator.observation_space.contains(observation)
            assert np.all(observation["rgb"] == np.array([info["frame"] % 256, 2, 1])[:, None, None])
            assert np.array_equal(simulator.render(), observation["rgb"].transpose(1, 2, 0))
            frame = info["frame"]
            observation, _, _, _, info = simulator.step(action)
            assert info["frame"] == frame + 1
        assert np.all(observation["rays"]["vehicles"] == 40.0), "it does not see itself"
        assert observation["lidar"][18] == pytest.approx(7.0, abs=0.01)
        assert observation["imu"] == pytest.approx([0, 0, 9.81, 0, 0, 0.1, 1.5])
        assert observation["gnss"] == pytest.approx([49, 8, 110.5])
        assert observation["measurements"]["speed_limit"] == pytest.approx(50 / 3.6)

    def test_the_same_seed_is_the_same_episode(self, server, made):
        simulator = made(traffic={"vehicles": 2, "walkers": 2})
        runs, starts, walkers = [], [], []
        for seed in (5, 5, 6, 7, 8):
            observation, _ = simulator.reset(seed, {})
            starts.append(observation["vehicle_state"]["location"][0])
            walkers.append([walker._place for walker in server.of_type("walker.*")])
            runs.append([observation, *(simulator.step(GO)[0] for _ in range(3))])
        for run in runs:
            for observation in run:
                del observation["rgb"]
        assert data_equivalence(runs[0], runs[1], exact=True)
        assert not all(data_equivalence(runs[0], run, exact=True) for run in runs[2:])
        assert len(set(starts)) > 1
        assert walkers[0] == walkers[1] != walkers[2]

    def test_the_road_ahead_is_to_the_side_where_it_turns(self, made):
        simulator = made(route={"lookahead": 30}, ego={"spawn_point": 3})
        observation = next(
            o for o, _ in (simulator.reset(s, {}) for s in range(10)) if o["navigation"]["waypoints"][-1][0] < 59.0
        )
        assert observation["navigation"]["command"] == 4, "nothing to decide for 20 m"
        assert observation["policy"][:4] == pytest.approx([0, 0, 0, 0], abs=1e-3)

    def test_steering_to_the_right_leaves_the_lane_to_the_right(self, made):
        simulator = made(ego={"spawn_point": 0}, episode={"end_on_lane_invasion": "solid"})
        simulator.reset(1, {})
        seen = []
        for _ in range(200):
            observation, reward, terminated, truncated, info = simulator.step(RIGHT)
            seen.append(observation["navigation"]["lane_offset"].item())
            if terminated:
                break
        assert seen == sorted(seen)
        assert (terminated, truncated, info["end"]) == (True, False, "lane_invasion")
        assert info["lane_invasions"][0]["markings"] == ["Solid"]
        assert reward < -15

    def test_off_the_road_ends_it_too(self, made):
        simulator = made(ego={"spawn_point": 0})
        simulator.reset(1, {})
        ends = [simulator.step(RIGHT)[4]["end"] for _ in range(60)]
        assert ends[0] is None
        assert "off_road" in ends

    def test_a_whole_route_driven_is_the_goal_and_all_of_its_progress(self, made):
        simulator = made(
            ego={"spawn_point": 0}, route={"length_m": 40}, reward={"off_centre_per_m_s": 0, "over_speed_per_mps_s": 0}
        )
        _, info = simulator.reset(1, {})
        length, total = info["route"]["length_m"], 0.0
        for _ in range(200):
            _, reward, terminated, _, info = simulator.step(GO)
            total += reward
            if terminated:
                break
        assert info["end"] == "goal"
        assert total == pytest.approx(info["route"]["done_m"] + 20.0, abs=0.01)
        assert info["route"]["done_m"] >= length - 3.0

    def test_frames_are_skipped_but_no_collision_in_them(self, server, made):
        simulator = made(episode={"frame_skip": 4, "end_on_collision": False})
        _, info = simulator.reset(1, {})
        server.bump = (-1, 300.0)
        frame = info["frame"]
        _, _, terminated, _, info = simulator.step(GO)
        deadline = time.monotonic() + 5
        while not info["episode_collisions"] and time.monotonic() < deadline:
            _, _, terminated, _, info = simulator.step(GO)
        assert (info["frame"] - frame) % 4 == 0
        assert info["episode_collisions"] == 1
        assert info["collisions"] == [{"frame": frame + 1, "impulse_ns": 300.0, "other": "traffic.traffic_light"}]
        assert not terminated
        assert simulator.step_s == pytest.approx(0.2)

    def test_events_of_before_the_episode_do_not_count(self, server, made):
        simulator = made()
        _, info = simulator.reset(1, {})
        server.bump = (info["frame"] - 1, 300.0)
        ends = [simulator.step(STOP)[4] for _ in range(5)]
        assert [end["episode_collisions"] for end in ends] == [0] * 5

    def test_options_choose_the_place_and_the_weather(self, server, made):
        simulator = made(route={"planner": "map"})
        observation, info = simulator.reset(1, {"spawn_point": 1, "destination": 3, "weather": {"fog_density": 70}})
        assert observation["vehicle_state"]["location"][0] == pytest.approx(40.0)
        assert info["route"]["length_m"] == pytest.approx(40.0, abs=1.0)
        assert server.weather.fog_density == 70.0
        simulator.reset(1, {})
        assert server.weather.fog_density == carla.WeatherParameters.ClearNoon.fog_density
        for wrong in (
            {"spawn": 1},
            {"spawn_point": 99},
            {"weather": "Sunny"},
            {"spawn_point": -1},
            {"destination": 99},
        ):
            with pytest.raises(InvalidOptions, match=r"spawn|destination|weather"):
                simulator.reset(1, wrong)
        assert server.of_type("vehicle.*") == [], "no half-begun episode stands in the world"
        simulator.reset(1, {})

    def test_occupied_spawn_points_are_passed_over_until_there_is_none(self, server, made):
        simulator = made()
        world = server.client("", 0).get_world()
        audi = world.get_blueprint_library().find("vehicle.audi.tt")
        free = server.spawn_points[2].location.x
        for x in (20.0, 40.0, 80.0):
            world.spawn_actor(audi, carla.Transform(carla.Location(x=x, y=1.75, z=0.5)))
        for seed in range(4):
            assert simulator.reset(seed, {})[0]["vehicle_state"]["location"][0] == pytest.approx(free)
        server.spawn_points.pop(2)
        with pytest.raises(SimulatorError, match="all 3 spawn points are occupied"):
            simulator.reset(1, {})


class TestSensors:
    def test_a_camera_that_says_nothing_fails_the_step_in_time(self, server, made):
        simulator = made(sensors={"camera": CAMERA, "timeout_s": 0.2})
        simulator.reset(1, {})
        server.mute.add("sensor.camera.rgb")
        with pytest.raises(SimulatorError, match=r"camera sent nothing yet, not frame \d+"):
            simulator.step(GO)

    def test_data_that_comes_late_is_waited_for(self, server, made):
        simulator = made()
        simulator.reset(1, {})
        server.mute.add("all")
        arrived = server.deliveries
        held = threading.Timer(0.15, lambda: (server.mute.clear(), [arrived.put(d) for d in server_data(server)]))
        held.start()
        observation, *_, info = simulator.step(GO)
        assert observation["rgb"][0, 0, 0] == info["frame"] % 256

    def test_frames_that_another_client_computed_are_noticed(self, server, made):
        simulator = made()
        simulator.reset(1, {})
        camera = server.of_type("sensor.camera.rgb")[0]
        for frame in (server.frame + 5,):
            server.deliveries.put((camera, dataclasses.make_dataclass("Image", ["frame"])(frame)))
        while not server.deliveries.empty():
            time.sleep(0.001)
        with pytest.raises(SimulatorError, match="another client ticks"):
            simulator.step(GO)


def server_data(server):
    """What the sensors have of the present frame."""
    return [(s, d) for s in server.of_type("sensor.camera.rgb") for d in s._sense(server.frame)]


class TestSnapshots:
    def test_rollouts_from_one_snapshot_are_alike(self, made):
        simulator = made(traffic={"vehicles": 1, "walkers": 1})
        simulator.reset(2, {})
        for _ in range(5):
            simulator.step(GO)
        state = simulator.snapshot()
        runs = []
        for _ in range(3):
            runs.append([simulator.step(action)[:2] for action in (RIGHT, GO, STOP, GO)])
            runs[-1].append(simulator.restore(state)[0])
        for run in runs:
            for observation, _ in run[:-1]:
                del observation["rgb"]
        assert data_equivalence(runs[0], runs[1], exact=False)
        assert data_equivalence(runs[1], runs[2], exact=True)

    def test_a_restore_answers_with_what_was_observed_then(self, made):
        simulator = made()
        simulator.reset(2, {})
        observation, *_, info = simulator.step(GO)
        image, state = simulator.render(), simulator.snapshot()
        simulator.step(RIGHT)
        again, told = simulator.restore(state)
        assert data_equivalence((observation, info), (again, told), exact=True)
        assert np.array_equal(simulator.render(), image)
        again["policy"][:] = 7.0
        assert data_equivalence(simulator.restore(state)[0], observation, exact=True), "a snapshot stays as it is"

    def test_lights_weather_and_other_road_users_come_back(self, server, made):
        simulator = made(traffic={"vehicles": 1, "walkers": 1})
        simulator.reset(2, {})
        simulator.step(GO)
        light = server.light
        light._state, light._times = carla.TrafficLightState.Green, [8.0, 2.0, 4.0]
        ego, other = (a for a in server.of_type("vehicle.*"))
        walker = server.of_type("walker.*")[0]
        other._lights = carla.VehicleLightState(5)
        before = [list(actor._place) for actor in (ego, other, walker)]
        state = simulator.snapshot()
        for _ in range(10):
            simulator.step(GO)
        light._state, light._times, light._frozen = carla.TrafficLightState.Red, [1.0, 1.0, 1.0], True
        server.weather = carla.WeatherParameters.HardRainNoon
        other._lights = carla.VehicleLightState(0)
        simulator.restore(state)
        assert (light._state, light._times, light._frozen) == (carla.TrafficLightState.Green, [8.0, 2.0, 4.0], False)
        assert server.weather.precipitation == 0.0
        assert int(other._lights) == 5
        for actor, place in zip((ego, other, walker), before, strict=True):
            assert actor._place == pytest.approx(place, abs=1e-3)
        simulator.step(GO)
        assert walker._place == pytest.approx(before[2], abs=0.2), (
            "its controller has not put it back where it was later"
        )

    def test_what_is_gone_is_spawned_again_and_what_came_later_goes(self, server, made):
        simulator = made(traffic={"vehicles": 2, "walkers": 1})
        simulator.reset(2, {})
        for _ in range(3):
            simulator.step(GO)
        state = simulator.snapshot()
        places = sorted(tuple(np.round(a._place, 2)) for a in server.actors.values() if isinstance(a, Vehicle | Walker))
        simulator.reset(9, {})
        simulator.step(GO)
        later = set(server.actors)
        _, info = simulator.restore(state)
        assert "not_restored" not in info
        users = [a for a in server.actors.values() if isinstance(a, Vehicle | Walker)]
        assert sorted(tuple(np.round(a._place, 2)) for a in users) == places
        assert not later & {user.id for user in users}
        assert [u._autopilot for u in users if isinstance(u, Vehicle)].count(8000) == 2
        info = simulator.step(GO)[4]
        assert info["frame"] == server.frame
        assert len(server.of_type("sensor.camera.rgb")) == 1

    def test_a_restore_recovers_a_lost_connection(self, server, made):
        simulator = made()
        simulator.reset(2, {})
        state = simulator.snapshot()
        server.down = True
        with pytest.raises(SimulatorError):
            simulator.step(GO)
        server.down = False
        simulator.restore(state)
        simulator.step(GO)
        server.map_name = "Carla/Maps/other"
        server.down = True
        with pytest.raises(SimulatorError):
            simulator.step(GO)
        server.down = False
        with pytest.raises(SimulatorError, match="snapshot is of the map fork, now it is other"):
            simulator.restore(state)

    def test_every_restore_of_a_snapshot_seeds_the_traffic_alike(self, server, made):
        simulator = made(traffic={"vehicles": 1})
        simulator.reset(2, {})
        first = simulator.snapshot()
        simulator.step(GO)
        second = simulator.snapshot()
        for state in (first, first, second):
            simulator.restore(state)
        one, again, other = server.managers[8000]._seeds[-3:]
        assert one == again != other

    def test_a_world_without_its_ego_vehicle_is_no_state_to_keep(self, server, made):
        simulator = made(traffic={"vehicles": 1})
        simulator.reset(2, {})
        server.of_type("vehicle.tesla*")[0]._gone()
        with pytest.raises(SimulatorError, match="ego vehicle is gone"):
            simulator.snapshot()

    def test_collisions_of_the_abandoned_branch_do_not_end_the_new_one(self, server, made):
        simulator = made()
        _, info = simulator.reset(2, {})
        state = simulator.snapshot()
        simulator.step(GO)
        simulator.restore(state)
        server.bump = (info["frame"] + 1, 500.0)
        assert [simulator.step(STOP)[4]["episode_collisions"] for _ in range(4)] == [0] * 4


class TestTheRacetrackPolicy:
    def test_its_columns_are_those_that_it_was_trained_on(self, server):
        pytest.importorskip("highway_env", reason="the racetrack needs highway-env")
        from examples.racetrack.driving_env import OBSERVATION_LAYOUT, RAY_ANGLES_DEG, RAY_RANGE_M, STEP_S

        config = load_config(CONFIGS / "carla-racetrack.yaml")
        simulator = CarlaSimulator(config, client_factory=server.client)
        try:
            observation, _ = simulator.reset(1, {})
            assert observation.dtype == np.float32
            assert observation.shape == (len(OBSERVATION_LAYOUT),)
            assert (config.observation.rays.angles_deg, config.observation.rays.range_m) == (
                RAY_ANGLES_DEG,
                RAY_RANGE_M,
            )
            assert simulator.step_s == STEP_S
            ours = simulator.details["policy_columns"]
            kinds = {"border_ray": "rays.border", "vehicle_ray": "rays.vehicles", "lane_heading_": "headings_ahead"}
            kinds |= {"closing": "rays.closing", "lane_offset": "lane_offset", "lane_heading": "heading"}
            kinds |= {"speed": "speed", "steering": "steering"}
            for field, column in zip(OBSERVATION_LAYOUT, ours, strict=True):
                assert next(to for start, to in kinds.items() if field.name.startswith(start)) in column
        finally:
            simulator.close()


class TestServed:
    """Over HTTP, as `carla-policy env serve --simulator carla` does."""

    def test_a_drive_with_a_branch_of_it(self, server):
        config = CarlaConfig.model_validate({"sensors": {"camera": CAMERA}, "traffic": {"vehicles": 1}})
        with Served(lambda: CarlaSimulator(config, client_factory=server.client)) as served:
            told = served.get("/info").json()
            assert told["environment"] == "fork"
            assert told["action_space"]["low"] == [-1.0, 0.0, 0.0]
            assert any("gear" in lost for lost in told["snapshots"]["loses"])
            began = served.post("/reset", {"seed": 4}).json()
            assert set(began["observation"]) == {"rgb", "vehicle_state", "navigation", "measurements", "policy"}
            state = served.post("/snapshot/create", {}).json()["snapshot_id"]
            first = served.post("/step", {"action": [0.0, 1.0, 0.0]}).json()
            again = served.post("/snapshot/restore", {"snapshot_id": state}).json()
            assert again["observation"] == began["observation"]
            assert served.post("/step", {"action": [0.0, 1.0, 0.0]}).json()["reward"] == pytest.approx(first["reward"])
            assert served.get("/render").headers["content-type"] == "image/png"
            wrong = served.post("/reset", {"options": {"weather": "Sunny"}})
            assert (wrong.status_code, wrong.json()["type"]) == (422, "InvalidOptions")
            assert served.get("/health").status_code == 200
            assert served.post("/step", {"action": [0.0, 1.0, 0.0]}).status_code == 409
            served.post("/reset", {"seed": 4})
            server.down = True
            assert served.post("/step", {"action": [0.0, 1.0, 0.0]}).status_code == 503
            assert served.get("/health").status_code == 503
            server.down = False
            assert served.post("/reset", {"seed": 4}).status_code == 200
            assert served.get("/health").status_code == 200
        assert settings_of(server) == (False, None)

    def test_options_of_the_command_line_are_over_those_of_the_file(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps({"host": "there", "port": 2004, "traffic": {"vehicles": 3}}))
        config = configured(tmp_path / "a.json", port=2008, traffic_port=8100)
        assert (config.host, config.port, config.traffic.port, config.traffic.vehicles) == ("there", 2008, 8100, 3)
        assert configured(None) == CarlaConfig()
        with pytest.raises(ValueError, match="one of the simulator's own three"):
            configured(None, port=8000)
        with pytest.raises(ValueError, match="for --simulator carla"):
            simulator_maker("gymnasium", "CartPole-v1", "{}", CarlaOptions(port=2000))
