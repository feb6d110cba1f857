"""The ego vehicle's sensors, read in lockstep: a step's observation is made of data of that step's frame alone.

CARLA delivers data in threads of its own, some after `tick` has returned. A stream (camera, lidar, GNSS, IMU) has one
datum for each frame and is waited for. Collisions and lane invasions come only when they happen, so nothing tells that
there is none: one that comes late is counted in the step in which it arrives, under the frame in which it happened.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla.config import LidarConfig, SensorsConfig
from carla_policy_environment.simulators.carla.world import WorldSession

CAMERA, LIDAR, GNSS, IMU = "camera", "lidar", "gnss", "imu"
COLLISION, LANE_INVASION = "collision", "lane_invasion"


@dataclass(frozen=True)
class Collision:
    """The frame it happened in, the impulse in N s, and what was hit, such as vehicle.audi.tt or static.fence."""

    frame: int
    impulse_ns: float
    other: str


@dataclass(frozen=True)
class LaneInvasion:
    """The frame it happened in and the kinds of markings that were crossed, such as Broken or Solid."""

    frame: int
    markings: tuple[str, ...]


@dataclass(frozen=True)
class SensorData:
    """What the sensors gave for one frame; arrays are copies."""

    frame: int
    rgb: NDArray[np.uint8] | None = None
    """`[height, width, 3]`."""
    lidar: NDArray[np.float32] | None = None
    """`[rays]` in metres, the first sector behind the vehicle, then clockwise seen from above."""
    gnss: NDArray[np.float64] | None = None
    """Latitude, longitude in degrees, altitude in metres."""
    imu: NDArray[np.float32] | None = None
    """Acceleration (m/s2, 3), turn rate (rad/s, 3), compass (rad from north)."""
    collisions: tuple[Collision, ...] = ()
    lane_invasions: tuple[LaneInvasion, ...] = ()


class FrameQueue:
    """Data of one stream, handed over by the client's threads, taken by frame number."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.put = (waiting := queue.SimpleQueue[Any]()).put
        self._waiting = waiting

    def of_frame(self, frame: int, deadline: float) -> Any:
        """The datum of `frame`; older ones are dropped. Raises `SimulatorError` past `deadline` (monotonic seconds)."""
        newest = None
        while True:
            try:
                datum = self._waiting.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                last = "nothing yet" if newest is None else f"frame {newest} last"
                raise SimulatorError(
                    f"the {self.name} sent {last}, not frame {frame}, in time: is the simulator rendering, and does "
                    "no other client tick it? sensors.timeout_s is how long a step waits"
                ) from None
            newest = datum.frame
            if newest == frame:
                return datum
            if newest > frame:
                raise SimulatorError(
                    f"the {self.name} skipped frame {frame} and sent frame {newest}: another client ticks the simulator"
                )

    def drain(self) -> list[Any]:
        """All that is there now."""
        found = []
        while True:
            try:
                found.append(self._waiting.get_nowait())
            except queue.Empty:
                return found


class SensorRig:
    """Sensors on one vehicle."""

    def __init__(self, session: WorldSession, vehicle: Any, config: SensorsConfig) -> None:
        """Raises `SimulatorError` if one cannot be attached; those before it are taken away again."""
        self._session, self._config = session, config
        self._streams: dict[str, FrameQueue] = {}
        self._events = {name: FrameQueue(name) for name in (COLLISION, LANE_INVASION)}
        self._actors: list[Any] = []
        self.not_before = 0
        """Events of earlier frames belong to what was before a reset or a restore, and are dropped."""
        try:
            for name, blueprint, attributes, place in _wanted(config, session):
                sensor = self._attach(vehicle, blueprint, attributes, place)
                if name in self._events:
                    sensor.listen(self._events[name].put)
                else:
                    self._streams[name] = FrameQueue(name)
                    sensor.listen(self._streams[name].put)
        except BaseException:
            self.close()
            raise

    def read(self, frame: int) -> SensorData:
        """The data of `frame`, waiting for each stream until the time-out of the configuration."""
        deadline = time.monotonic() + self._config.timeout_s
        data = {name: stream.of_frame(frame, deadline) for name, stream in self._streams.items()}
        return SensorData(
            frame=frame,
            rgb=rgb_array(data[CAMERA]) if CAMERA in data else None,
            lidar=lidar_sectors(points_of(data[LIDAR]), self._lidar) if LIDAR in data else None,
            gnss=_gnss(data[GNSS]) if GNSS in data else None,
            imu=_imu(data[IMU]) if IMU in data else None,
            collisions=tuple(
                Collision(event.frame, event.normal_impulse.length(), _type_of(event.other_actor))
                for event in self._new(COLLISION)
            ),
            lane_invasions=tuple(
                LaneInvasion(event.frame, tuple(str(marking.type) for marking in event.crossed_lane_markings))
                for event in self._new(LANE_INVASION)
            ),
        )

    def forget(self, frame: int) -> None:
        """Drop what has come, and later what comes late, of frames up to `frame`."""
        self.not_before = frame + 1
        for events in self._events.values():
            events.drain()

    def close(self) -> None:
        """Stop and destroy the sensors; they go before the vehicle that carries them."""
        actors, self._actors = self._actors, []
        for actor in actors:
            with self._session.calling("stop a sensor"):
                actor.stop()
        self._session.destroy(actors)

    @property
    def _lidar(self) -> LidarConfig:
        assert self._config.lidar is not None
        return self._config.lidar

    def _new(self, name: str) -> Iterable[Any]:
        return (event for event in self._events[name].drain() if event.frame >= self.not_before)

    def _attach(self, vehicle: Any, name: str, attributes: dict[str, str], place: Any) -> Any:
        blueprint = self._session.blueprint(name)
        for key, value in attributes.items():
            blueprint.set_attribute(key, value)
        with self._session.calling(f"attach {name}"):
            sensor = self._session.world.spawn_actor(blueprint, place, attach_to=vehicle)
        self._actors.append(sensor)
        return sensor


def _wanted(config: SensorsConfig, session: WorldSession) -> Iterable[tuple[str, str, dict[str, str], Any]]:
    """Name, blueprint, attributes and place of each sensor."""
    carla, step_s = session.carla, session.config.world.fixed_delta_s
    centre = carla.Transform()
    yield COLLISION, "sensor.other.collision", {}, centre
    yield LANE_INVASION, "sensor.other.lane_invasion", {}, centre
    if config.camera is not None:
        camera = config.camera
        yield (
            CAMERA,
            "sensor.camera.rgb",
            {
                "image_size_x": str(camera.width),
                "image_size_y": str(camera.height),
                "fov": str(camera.field_of_view_deg),
                "sensor_tick": "0.0",
            },
            carla.Transform(
                carla.Location(x=camera.x, y=camera.y, z=camera.z), carla.Rotation(pitch=camera.pitch, yaw=camera.yaw)
            ),
        )
    if config.lidar is not None:
        lidar = config.lidar
        yield (
            LIDAR,
            "sensor.lidar.ray_cast",
            {
                "channels": str(lidar.channels),
                "range": str(lidar.range_m),
                "points_per_second": str(lidar.points_per_second),
                "rotation_frequency": str(1.0 / step_s),
                "sensor_tick": "0.0",
            },
            carla.Transform(carla.Location(z=lidar.z)),
        )
    if config.gnss:
        yield GNSS, "sensor.other.gnss", {"sensor_tick": "0.0"}, centre
    if config.imu:
        yield IMU, "sensor.other.imu", {"sensor_tick": "0.0"}, centre


def rgb_array(image: Any) -> NDArray[np.uint8]:
    """`[height, width, 3]` RGB of a `carla.Image`, whose bytes are BGRA."""
    pixels = np.frombuffer(image.raw_data, dtype=np.uint8).reshape(image.height, image.width, 4)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def points_of(measurement: Any) -> NDArray[np.float32]:
    """`[points, 4]` of a `carla.LidarMeasurement`: x forward, y right, z up in metres, intensity."""
    return np.frombuffer(measurement.raw_data, dtype=np.float32).reshape(-1, 4)


def lidar_sectors(points: NDArray[np.float32], config: LidarConfig) -> NDArray[np.float32]:
    """`[rays]`: the nearest return in each sector, `range_m` where there is none; ground returns are left out."""
    nearest = np.full(config.rays, config.range_m, dtype=np.float32)
    above = points[points[:, 2] >= config.lowest_m]
    share = (np.arctan2(above[:, 1], above[:, 0]) + math.pi) / (2 * math.pi)
    sector = np.minimum((share * config.rays).astype(np.intp), config.rays - 1)
    np.minimum.at(nearest, sector, np.hypot(above[:, 0], above[:, 1]))
    return nearest


def _type_of(actor: Any) -> str:
    """What it is; the actor may be gone by the time its collision is read."""
    return "unknown" if actor is None else str(actor.type_id)


def _gnss(measurement: Any) -> NDArray[np.float64]:
    return np.array([measurement.latitude, measurement.longitude, measurement.altitude], dtype=np.float64)


def _imu(measurement: Any) -> NDArray[np.float32]:
    acceleration, turning = measurement.accelerometer, measurement.gyroscope
    return np.array(
        [*(acceleration.x, acceleration.y, acceleration.z), *(turning.x, turning.y, turning.z), measurement.compass],
        dtype=np.float32,
    )
