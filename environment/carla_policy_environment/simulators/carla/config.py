"""What a user decides about the CARLA simulator, checked before anything connects.

Distances are metres, angles degrees where CARLA has degrees (transforms, fields of view), speeds m/s.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Port = Annotated[int, Field(ge=1, le=65535)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
LaneTypeName = Literal["Driving", "Bidirectional", "Parking", "Shoulder", "Biking", "Stop", "Entry", "Exit"]


class Settings(BaseModel):
    """Unknown keys are refused: a misspelt one would be a default in disguise."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorldConfig(Settings):
    """The map and the clock."""

    map: str | None = None
    """Such as Town03; None takes the map that the simulator has loaded."""
    fixed_delta_s: Positive = 0.05
    max_substep_s: Positive = 0.01
    max_substeps: Annotated[int, Field(ge=1, le=16)] = 10
    no_rendering: bool = False
    """Without rendering cameras see nothing: only with `sensors.camera` null."""
    deterministic_ragdolls: bool = True
    reload_on_reset: bool = False
    """Load the map anew at every reset: slow (seconds), and CARLA's own advice for repeatable episodes."""
    on_close: Literal["former", "asynchronous"] = "former"
    """What the world is left in: the settings it was found in, or these with the synchronous mode off."""
    leftovers: tuple[str, ...] = ("hero", "carla-policy-traffic")
    """Vehicles and walkers with these role names are what a run that crashed left: destroyed on connecting."""
    weather: str | dict[str, Finite] = "ClearNoon"
    """A preset of `carla.WeatherParameters` or its fields by name."""

    @model_validator(mode="after")
    def _physics_keeps_up(self) -> WorldConfig:
        if self.fixed_delta_s > self.max_substep_s * self.max_substeps * (1 + 1e-9):
            raise ValueError(
                f"fixed_delta_s {self.fixed_delta_s} is more than max_substep_s {self.max_substep_s} times "
                f"max_substeps {self.max_substeps}: CARLA's physics could not keep up with its clock"
            )
        return self


class EgoConfig(Settings):
    """The vehicle that is driven."""

    blueprint: str = "vehicle.tesla.model3"
    role_name: str = "hero"
    colour: str | None = None
    """As CARLA writes it: "R,G,B"."""
    spawn_point: Annotated[int, Field(ge=0)] | None = None
    """Index into the map's spawn points; None draws one by the reset's seed."""
    settle_ticks: Annotated[int, Field(ge=1, le=200)] = 10
    """Steps before an episode begins, in which the vehicle, held by its brake, falls onto the road."""


class CameraConfig(Settings):
    """A camera on the ego vehicle; the image is the observation's `rgb` and what /render shows."""

    width: Annotated[int, Field(ge=1, le=4096)] = 400
    height: Annotated[int, Field(ge=1, le=4096)] = 224
    field_of_view_deg: Annotated[float, Field(gt=0, lt=180)] = 100.0
    x: Finite = 1.3
    y: Finite = 0.0
    z: Finite = 2.3
    pitch: Finite = 0.0
    yaw: Finite = 0.0


class LidarConfig(Settings):
    """A turning lidar, reduced to the nearest return in each of `rays` sectors around the vehicle."""

    rays: Annotated[int, Field(ge=1, le=3600)] = 36
    range_m: Positive = 50.0
    channels: Annotated[int, Field(ge=1, le=256)] = 32
    points_per_second: Annotated[int, Field(ge=1)] = 100_000
    z: Finite = 2.4
    lowest_m: Finite = -2.0
    """Returns lower than this under the sensor are ground and left out."""


class SensorsConfig(Settings):
    """Which sensors the ego vehicle carries; collision and lane invasion are always there."""

    camera: CameraConfig | None = CameraConfig()
    lidar: LidarConfig | None = None
    gnss: bool = False
    imu: bool = False
    timeout_s: Positive = 5.0
    """How long a step waits for each sensor's data of its frame."""


class RaysConfig(Settings):
    """Distances to the road's border and to other vehicles along rays, from the map and the actors' true boxes."""

    angles_deg: Annotated[tuple[Finite, ...], Field(min_length=1)] = (-90, -60, -40, -20, -10, 0, 10, 20, 40, 60, 90)
    """Zero is straight ahead, positive to the right."""
    range_m: Positive = 40.0


class TrafficConfig(Settings):
    """Other road users."""

    vehicles: Annotated[int, Field(ge=0, le=1000)] = 0
    walkers: Annotated[int, Field(ge=0, le=1000)] = 0
    port: Port = 8000
    """The Traffic Manager's; each service on a machine needs its own."""
    speed_difference_percent: Finite = 0.0
    """Positive: slower than the limit."""
    gap_m: NotNegative = 2.5
    crossing_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of walkers that may cross roads anywhere."""
    hybrid_physics: bool = False


class RouteConfig(Settings):
    """Where the ego vehicle is to go."""

    planner: Literal["auto", "agents", "map"] = "auto"
    """`agents`: CARLA's GlobalRoutePlanner; `map`: along the map's waypoints; `auto`: the first if it is there."""
    length_m: Positive = 500.0
    """Without a destination: as long as this, with turns drawn by the reset's seed."""
    destination: Annotated[int, Field(ge=0)] | None = None
    """Index into the map's spawn points. The planner `map` finds the shortest way too, without lane changes."""
    spacing_m: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    lookahead: Annotated[int, Field(ge=1, le=200)] = 10
    lookahead_spacing_m: Positive = 2.0


class EpisodeConfig(Settings):
    """What ends an episode."""

    max_steps: Annotated[int, Field(ge=1)] | None = 1000
    frame_skip: Annotated[int, Field(ge=1, le=100)] = 1
    """Simulator steps for which one action is held."""
    end_on_collision: bool = True
    collision_impulse_ns: NotNegative = 0.0
    """A touch with a smaller impulse (N s) is counted and ends nothing."""
    end_off_road: bool = True
    off_road_tolerance_m: NotNegative = 0.5
    """How far the vehicle's centre may be beyond a drivable lane's edge: in junctions lanes leave gaps."""
    drivable: tuple[LaneTypeName, ...] = ("Driving", "Bidirectional", "Parking")
    end_on_lane_invasion: Literal["never", "solid", "any"] = "never"
    max_route_deviation_m: Positive | None = 30.0
    goal_radius_m: Positive = 3.0
    """An episode has reached its goal where this or less of its route is left."""


class RewardConfig(Settings):
    """`dense`: the sum of these each step. `sparse`: 1 at the goal, -1 where the drive failed, else 0."""

    type: Literal["dense", "sparse"] = "dense"
    progress_per_m: Finite = 1.0
    target_speed_mps: Positive = 10.0
    over_speed_per_mps_s: NotNegative = 0.5
    """Cost per m/s over the target speed and second."""
    off_centre_per_m_s: NotNegative = 0.2
    steering_change: NotNegative = 0.1
    """Cost per full lock of change in steering."""
    failure: NotNegative = 20.0
    goal: NotNegative = 20.0


class Column(Settings):
    """One entry, or all of an array's entries, of the flat observation that a policy server takes."""

    source: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_0-9]+)*$")]
    """Path into the Dict observation: `measurements.speed`, `navigation.waypoints.3.1`, `rays.border`."""
    scale: Finite = 1.0
    offset: Finite = 0.0
    """The column is source * scale + offset."""
    low: Finite | None = None
    high: Finite | None = None
    """Where set, what lies outside is clipped and named in `info["clipped"]`."""

    @model_validator(mode="after")
    def _ordered(self) -> Column:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"{self.source}: low {self.low} is not below high {self.high}")
        return self


class ObservationConfig(Settings):
    """`dict`: the Dict observation, the flat one in it as `policy`; `flat`: `[speed, steering, *sensors]` alone."""

    form: Literal["dict", "flat"] = "dict"
    rays: RaysConfig | None = None
    sensors: tuple[Column, ...] = (
        Column(source="navigation.lane_offset"),
        Column(source="navigation.heading_error"),
        Column(source="navigation.waypoints"),
    )
    """The columns after speed and steering."""


class CarlaConfig(Settings):
    """All of it."""

    host: str = "127.0.0.1"
    port: Port = 2000
    timeout_s: Positive = 20.0
    """Longest wait for the simulator's answer to a call; loading a map may take longer: `load_timeout_s`."""
    load_timeout_s: Positive = 120.0
    version_check: bool = True
    world: WorldConfig = WorldConfig()
    ego: EgoConfig = EgoConfig()
    sensors: SensorsConfig = SensorsConfig()
    traffic: TrafficConfig = TrafficConfig()
    route: RouteConfig = RouteConfig()
    episode: EpisodeConfig = EpisodeConfig()
    reward: RewardConfig = RewardConfig()
    observation: ObservationConfig = ObservationConfig()
    spectator: bool = True
    """The simulator's own window follows the vehicle."""
    recording: str | None = None
    """File on the simulator's machine for CARLA's recorder, one for each episode: `{episode}` is its number."""

    @model_validator(mode="after")
    def _together(self) -> CarlaConfig:
        if self.world.no_rendering and self.sensors.camera is not None:
            raise ValueError("world.no_rendering makes cameras blind: set sensors.camera to null, or render")
        if self.recording is not None and "{episode}" not in self.recording:
            raise ValueError(
                "recording must contain {episode}, such as drive-{episode}.log: each would replace the last"
            )
        ports = {self.port, self.port + 1, self.port + 2}
        if self.traffic.port in ports:
            raise ValueError(
                f"traffic.port {self.traffic.port} is one of the simulator's own three from {self.port} on"
            )
        return self
