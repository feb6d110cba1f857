"""A stand-in for a CARLA server and its client's classes, for tests of what needs a running simulator.

Its classes have the names of the client package's, and no public attribute that those lack: `test_carla_api.py` holds
each against the real package. Vectors, transforms, controls, settings, weather, commands and the map's geometry are the
package's own. What is imitated is behaviour that has bitten users of CARLA: an actor's state is that of the last frame
(zeros before its first), sensor data arrive from another thread after `tick`, a time-out is a `RuntimeError`.
Physics are a point that moves; nothing here says how CARLA's vehicles move.
"""

# The parameters are named as in the client package, also those that mean nothing here.
# ruff: noqa: A002, ARG002

from __future__ import annotations

import fnmatch
import itertools
import math
import queue
import random
import threading

import carla
import numpy as np

from tests import carla_roads

SETTINGS = (
    "synchronous_mode",
    "no_rendering_mode",
    "fixed_delta_seconds",
    "substepping",
    "max_substep_delta_time",
    "max_substeps",
    "deterministic_ragdolls",
)
CAR = "vehicle.tesla.model3"
BLUEPRINTS = {
    CAR: {"role_name": "autopilot", "color": "0,0,0", "base_type": "car"},
    "vehicle.audi.tt": {"role_name": "autopilot", "color": "1,1,1", "base_type": "car"},
    "walker.pedestrian.0001": {"role_name": "pedestrian", "is_invincible": "true"},
    "controller.ai.walker": {},
    "sensor.other.collision": {},
    "sensor.other.lane_invasion": {},
    "sensor.camera.rgb": {"image_size_x": "800", "image_size_y": "600", "fov": "90", "sensor_tick": "0"},
    "sensor.lidar.ray_cast": dict.fromkeys(("channels", "range", "points_per_second", "rotation_frequency"), "1")
    | {"sensor_tick": "0"},
    "sensor.other.gnss": {"sensor_tick": "0"},
    "sensor.other.imu": {"sensor_tick": "0"},
}


def copied(settings: carla.WorldSettings) -> carla.WorldSettings:
    made = carla.WorldSettings()
    for name in SETTINGS:
        setattr(made, name, getattr(settings, name))
    return made


class Server:
    """The state behind the client's classes, and what tests break in it."""

    def __init__(self, version: str = "0.9.16") -> None:
        self.version = version
        self.map_name = "Carla/Maps/fork"
        self.maps = {"Carla/Maps/fork", "Carla/Maps/other"}
        self.spawn_points = [carla.Transform(carla.Location(x=x, y=1.75, z=0.5)) for x in (20.0, 40.0, 60.0, 80.0)]
        self.settings = carla.WorldSettings()
        self.weather = carla.WeatherParameters()
        self.actors: dict[int, Actor] = {}
        self.ids = itertools.count(1)
        self.frame = 100
        self.rng = random.Random(0)
        self.log: list[str] = []
        self.down, self.waits = False, 0
        self.mute: set[str] = set()
        self.skip_frames = False
        self.managers: dict[int, TrafficManager] = {}
        self.recordings: list[str] = []
        self.bump: tuple[int, float] | None = None
        self.deliveries: queue.SimpleQueue = queue.SimpleQueue()
        self.courier = threading.Thread(target=self._deliver, daemon=True)
        self.courier.start()
        self.spectator = Actor(self, "spectator", {}, carla.Transform(), None)
        self.light = TrafficLight(self, "traffic.traffic_light", {}, carla.Transform(), None)

    def client(self, host: str, port: int) -> Client:
        made = Client(host, port)
        made._server = self
        return made

    def call(self, what: str) -> None:
        self.log.append(what)
        if self.down:
            self.waits += 1
            raise RuntimeError(
                "time-out of 20000ms while waiting for the simulator, make sure it is ready and connected"
            )

    def compute(self) -> int:
        self.frame += 2 if self.skip_frames else 1
        delta_s = self.settings.fixed_delta_seconds or 0.05
        for actor in self.actors.values():
            actor._move(delta_s)
        for actor in self.actors.values():
            actor._seen = (list(actor._place), tuple(actor._speed), tuple(actor._turning))
        for actor in list(self.actors.values()):
            if isinstance(actor, Sensor) and actor._callback is not None:
                for datum in actor._sense(self.frame):
                    self.deliveries.put((actor, datum))
        return self.frame

    def _deliver(self) -> None:
        while True:
            sensor, datum = self.deliveries.get()
            if sensor._callback is not None and not {sensor.type_id, "all"} & self.mute:
                sensor._callback(datum)

    def of_type(self, pattern: str) -> list[Actor]:
        return [actor for actor in self.actors.values() if fnmatch.fnmatch(actor.type_id, pattern)]


class Client:
    def __init__(self, host="127.0.0.1", port=2000, worker_threads=0):
        self._timeout = None
        self._server: Server

    def set_timeout(self, seconds):
        self._timeout = float(seconds)

    def get_client_version(self):
        return "0.9.16"

    def get_server_version(self):
        self._server.call("get_server_version")
        return self._server.version

    def get_world(self):
        self._server.call("get_world")
        return World(self._server)

    def get_available_maps(self):
        return sorted(self._server.maps)

    def load_world(self, map_name, reset_settings=True, map_layers=None):
        self._server.call(f"load_world {map_name}")
        self._server.map_name = f"Carla/Maps/{map_name}"
        self._server.settings = carla.WorldSettings()
        self._server.actors.clear()
        return World(self._server)

    def reload_world(self, reset_settings=True):
        self._server.call(f"reload_world {reset_settings}")
        self._server.actors.clear()
        return World(self._server)

    def apply_batch_sync(self, commands, do_tick=False):
        self._server.call("apply_batch_sync")
        return [self._carry_out(command) for command in commands]

    def get_trafficmanager(self, port=8000):
        self._server.call(f"get_trafficmanager {port}")
        return self._server.managers.setdefault(port, TrafficManager(self._server, port))

    def start_recorder(self, name, additional_data=False):
        self._server.call(f"start_recorder {name}")
        self._server.recordings.append(name)
        return name

    def stop_recorder(self):
        self._server.call("stop_recorder")

    def _carry_out(self, command):
        name = type(command).__name__
        actor = self._server.actors.get(command.actor_id)
        if actor is None:
            return Response(command.actor_id, f"unable to find actor {command.actor_id}")
        if name == "DestroyActor":
            actor._gone()
        elif name == "ApplyTransform":
            actor._place = _numbers(command.transform)
        elif name == "ApplyTargetVelocity":
            actor._speed = _xyz(command.velocity)
        elif name == "ApplyTargetAngularVelocity":
            actor._turning = _xyz(command.angular_velocity)
        elif name in ("ApplyVehicleControl", "ApplyWalkerControl"):
            actor._control = command.control
        elif name == "SetVehicleLightState":
            actor._lights = command.light_state
        elif name == "SetAutopilot":
            actor._autopilot = command.tm_port if command.enabled else None
        else:
            raise AssertionError(f"the stand-in does not know {name}")
        return Response(command.actor_id, "")


class Response:
    def __init__(self, actor_id, error):
        self.actor_id, self.error = actor_id, error


class Map:
    """The real `carla.Map` of an OpenDRIVE text, which has no spawn points of its own."""

    def __init__(self, name, xodr_content):
        self.name = name
        self._real = carla.Map(name, xodr_content)
        self._points: list[carla.Transform] = []

    def get_spawn_points(self):
        return list(self._points)

    def get_waypoint(self, location, project_to_road=True, lane_type=carla.LaneType.Driving):
        return self._real.get_waypoint(location, project_to_road=project_to_road, lane_type=lane_type)


class World:
    def __init__(self, server):
        self._server = server

    def get_map(self):
        made = Map(self._server.map_name, carla_roads.opendrive())
        made._points = self._server.spawn_points
        return made

    def get_settings(self):
        self._server.call("get_settings")
        return copied(self._server.settings)

    def apply_settings(self, settings, seconds=0.0):
        self._server.call("apply_settings")
        self._server.settings = copied(settings)
        return self._server.frame

    def tick(self, seconds=0.0):
        self._server.call("tick")
        assert self._server.settings.synchronous_mode, "a tick out of synchronous mode"
        return self._server.compute()

    def get_snapshot(self):
        return WorldSnapshot(self._server)

    def get_actors(self):
        self._server.call("get_actors")
        return ActorList([*self._server.actors.values(), self._server.light])

    def get_blueprint_library(self):
        self._server.call("get_blueprint_library")
        return BlueprintLibrary({name: ActorBlueprint(name, values) for name, values in BLUEPRINTS.items()})

    def try_spawn_actor(self, blueprint, transform, attach_to=None, attachment_type=None):
        self._server.call(f"try_spawn_actor {blueprint.id}")
        place = _numbers(transform)
        if blueprint.id.startswith(("vehicle.", "walker.")):
            if place[2] < 0.1:
                return None  # it would touch the ground
            for other in self._server.of_type("vehicle.*") + self._server.of_type("walker.*"):
                if math.dist(other._place[:2], place[:2]) < (4.0 if other.type_id.startswith("vehicle.") else 0.5):
                    return None
        kind = next(made for prefix, made in KINDS.items() if blueprint.id.startswith(prefix))
        actor = kind(self._server, blueprint.id, dict(blueprint._values), transform, attach_to)
        self._server.actors[actor.id] = actor
        return actor

    def spawn_actor(self, blueprint, transform, attach_to=None, attachment_type=None):
        actor = self.try_spawn_actor(blueprint, transform, attach_to)
        if actor is None:
            raise RuntimeError("Spawn failed because of collision at spawn position")
        return actor

    def get_weather(self):
        return self._server.weather

    def set_weather(self, weather):
        self._server.call("set_weather")
        self._server.weather = weather

    def get_spectator(self):
        return self._server.spectator

    def reset_all_traffic_lights(self):
        self._server.call("reset_all_traffic_lights")

    def set_pedestrians_seed(self, seed):
        self._server.rng = random.Random(seed)

    def set_pedestrians_cross_factor(self, percentage):
        self._server.call(f"cross_factor {percentage}")

    def get_random_location_from_navigation(self):
        return carla.Location(x=self._server.rng.uniform(5, 110), y=4.5, z=0.2)


class WorldSnapshot:
    def __init__(self, server):
        self._there = {number for number, actor in server.actors.items() if actor._seen is not None}

    def has_actor(self, actor_id):
        return actor_id in self._there


class ActorList:
    def __init__(self, actors):
        self._actors = actors

    def __iter__(self):
        return iter(self._actors)

    def filter(self, wildcard_pattern):
        return ActorList([actor for actor in self._actors if fnmatch.fnmatch(actor.type_id, wildcard_pattern)])


class ActorAttribute:
    def __init__(self, value):
        self._value = value
        self.recommended_values = [value, "9,9,9"]

    def __eq__(self, other):
        return self._value == other

    __hash__ = None


class ActorBlueprint:
    def __init__(self, name, values):
        self.id = name
        self._values = dict(values)

    def has_attribute(self, id):
        return id in self._values

    def get_attribute(self, id):
        return ActorAttribute(self._values[id])

    def set_attribute(self, id, value):
        if id not in self._values:
            raise IndexError(f"attribute '{id}' not found")
        assert isinstance(value, str)
        self._values[id] = value


class BlueprintLibrary:
    def __init__(self, blueprints):
        self._blueprints = blueprints

    def find(self, id):
        if id not in self._blueprints:
            raise IndexError(f"blueprint '{id}' not found")
        return self._blueprints[id]

    def filter(self, wildcard_pattern):
        found = {name: b for name, b in self._blueprints.items() if fnmatch.fnmatch(name, wildcard_pattern)}
        return BlueprintLibrary(found)

    def __iter__(self):
        return iter(self._blueprints.values())


class TrafficManager:
    def __init__(self, server, port):
        self._server, self._port, self._synchronous, self._seeds = server, port, False, []

    def set_synchronous_mode(self, mode_switch):
        self._server.call(f"tm synchronous {mode_switch}")
        self._synchronous = mode_switch

    def set_random_device_seed(self, value):
        self._seeds.append(value)

    def set_global_distance_to_leading_vehicle(self, distance):
        pass

    def global_percentage_speed_difference(self, percentage):
        pass

    def set_hybrid_physics_mode(self, enabled):
        pass

    def shut_down(self):
        self._server.call("tm shut_down")
        self._server.managers.pop(self._port, None)


class Actor:
    def __init__(self, server, type_id, attributes, transform, parent):
        self._server, self._place = server, _numbers(transform)
        self._speed, self._turning = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        self._seen = None
        self.id, self.type_id, self.attributes, self.parent = next(server.ids), type_id, attributes, parent
        self.is_alive = True

    def get_transform(self):
        return _transform(self._seen[0] if self._seen else [0.0] * 6)

    def set_transform(self, transform):
        self._place = _numbers(transform)

    def get_velocity(self):
        return carla.Vector3D(*(self._seen[1] if self._seen else (0.0, 0.0, 0.0)))

    def get_angular_velocity(self):
        return carla.Vector3D(*(self._seen[2] if self._seen else (0.0, 0.0, 0.0)))

    def get_acceleration(self):
        return carla.Vector3D()

    def _gone(self):
        self.is_alive = False
        self._server.log.append(f"destroyed {self.type_id}")
        self._server.actors.pop(self.id, None)

    def _move(self, delta_s):
        pass


class Vehicle(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._control, self._lights, self._autopilot = carla.VehicleControl(), carla.VehicleLightState(0), None
        self.bounding_box = carla.BoundingBox(carla.Location(z=0.7), carla.Vector3D(2.4, 1.0, 0.7))

    def get_control(self):
        return self._control

    def get_light_state(self):
        return self._lights

    def get_speed_limit(self):
        return 50.0

    def get_traffic_light_state(self):
        return carla.TrafficLightState.Green

    def _move(self, delta_s):
        x, y, _, pitch, yaw, roll = self._place
        heading = math.radians(yaw)
        speed = self._speed[0] * math.cos(heading) + self._speed[1] * math.sin(heading)
        if self._autopilot is not None:
            speed = 5.0
        else:
            speed = max(speed + (5.0 * self._control.throttle - 8.0 * self._control.brake) * delta_s, 0.0)
        turning = speed / 2.8 * math.tan(0.6 * self._control.steer)
        heading += turning * delta_s
        self._place = [x + speed * math.cos(heading) * delta_s, y + speed * math.sin(heading) * delta_s]
        self._place += [0.0, pitch, math.degrees(heading), roll]
        self._speed = (speed * math.cos(heading), speed * math.sin(heading), 0.0)
        self._turning = (0.0, 0.0, math.degrees(turning))


class Walker(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._control = carla.WalkerControl()

    def get_control(self):
        return self._control


class WalkerAIController(Actor):
    """Puts its walker where the controller thinks it is, as CARLA's crowd does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._at, self._goal, self._pace = None, None, 0.0

    def start(self):
        assert self._seen is not None, "a controller is started after its first frame"
        assert self.parent._seen is not None, "a controller begins where its walker was in a frame"
        self._at = list(self.parent._seen[0])

    def stop(self):
        self._at = None

    def go_to_location(self, destination):
        self._goal = destination

    def set_max_speed(self, speed):
        self._pace = float(speed)

    def _move(self, delta_s):
        if self._at is not None and self._goal is not None:
            self._at[0] += math.copysign(self._pace * delta_s, self._goal.x - self._at[0])
            self.parent._place = list(self._at)


class TrafficLight(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._state, self._times, self._frozen = carla.TrafficLightState.Red, [10.0, 3.0, 2.0], False

    def get_opendrive_id(self):
        return "17"

    def get_state(self):
        return self._state

    def set_state(self, state):
        self._state = state

    def is_frozen(self):
        return self._frozen

    def freeze(self, freeze):
        self._frozen = freeze

    def get_green_time(self):
        return self._times[0]

    def get_yellow_time(self):
        return self._times[1]

    def get_red_time(self):
        return self._times[2]

    def set_green_time(self, green_time):
        self._times[0] = green_time

    def set_yellow_time(self, yellow_time):
        self._times[1] = yellow_time

    def set_red_time(self, red_time):
        self._times[2] = red_time


class Sensor(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._callback, self._was_on_road = None, True

    def listen(self, callback):
        self._callback = callback

    def stop(self):
        self._server.log.append(f"stopped {self.type_id}")
        self._callback = None

    def _sense(self, frame):
        if self.type_id == "sensor.camera.rgb":
            yield Image(frame, int(self.attributes["image_size_x"]), int(self.attributes["image_size_y"]))
        elif self.type_id == "sensor.lidar.ray_cast":
            yield LidarMeasurement(frame)
        elif self.type_id == "sensor.other.gnss":
            yield GnssMeasurement(frame)
        elif self.type_id == "sensor.other.imu":
            yield IMUMeasurement(frame)
        elif self.type_id == "sensor.other.collision":
            bump = self._server.bump
            if bump is not None:
                self._server.bump = None
                yield CollisionEvent(frame if bump[0] < 0 else bump[0], bump[1], self._server.light)
        elif self.type_id == "sensor.other.lane_invasion":
            x, y = self.parent._place[:2]
            on_road = 0.0 <= y <= carla_roads.LANE_WIDTH_M and x >= 0.0
            if self._was_on_road and not on_road:
                yield LaneInvasionEvent(frame)
            self._was_on_road = on_road


class SensorData:
    def __init__(self, frame):
        self.frame = frame


class Image(SensorData):
    """Every pixel is blue 1, green 2 and the frame's number, modulo 256, in red."""

    def __init__(self, frame, width, height):
        super().__init__(frame)
        self.width, self.height = width, height
        self.raw_data = bytes([1, 2, frame % 256, 255]) * (width * height)


class LidarMeasurement(SensorData):
    """A wall 7 m ahead, a return from the ground 3 m to the right."""

    def __init__(self, frame):
        super().__init__(frame)
        self.raw_data = np.array([[7.0, 0.01, 0.0, 1.0], [0.0, 3.0, -2.4, 1.0]], np.float32).tobytes()


class GnssMeasurement(SensorData):
    def __init__(self, frame):
        super().__init__(frame)
        self.latitude, self.longitude, self.altitude = 49.0, 8.0, 110.5


class IMUMeasurement(SensorData):
    def __init__(self, frame):
        super().__init__(frame)
        self.accelerometer, self.gyroscope = carla.Vector3D(0.0, 0.0, 9.81), carla.Vector3D(0.0, 0.0, 0.1)
        self.compass = 1.5


class CollisionEvent(SensorData):
    def __init__(self, frame, impulse, other):
        super().__init__(frame)
        self.normal_impulse, self.other_actor = carla.Vector3D(impulse, 0.0, 0.0), other


class LaneMarking:
    def __init__(self, kind):
        self.type = kind


class LaneInvasionEvent(SensorData):
    def __init__(self, frame):
        super().__init__(frame)
        self.crossed_lane_markings = [LaneMarking(carla.LaneMarkingType.Solid)]


KINDS = {
    "vehicle.": Vehicle,
    "walker.": Walker,
    "controller.ai.walker": WalkerAIController,
    "sensor.": Sensor,
}


def _xyz(vector):
    return vector.x, vector.y, vector.z


def _numbers(transform):
    turn = transform.rotation
    return [*_xyz(transform.location), turn.pitch, turn.yaw, turn.roll]


def _transform(numbers):
    x, y, z, pitch, yaw, roll = numbers
    return carla.Transform(carla.Location(x, y, z), carla.Rotation(pitch=pitch, yaw=yaw, roll=roll))
