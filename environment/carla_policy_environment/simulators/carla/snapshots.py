"""Snapshots of what CARLA's API can set again: where actors are and how they move, lights, weather.

CARLA has no snapshot of its own. What the API only reads, or does not show at all, is listed in `LOSES`: a rollout
after a restore begins in the same place at the same speed, and may differ from another one in its digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla.traffic import RoadUser, Traffic
from carla_policy_environment.simulators.carla.world import WorldSession

RESTORES = (
    "the ego vehicle, other vehicles and walkers of this service: transform, velocity, turn rate, control, lights",
    "which of them there are: missing ones are spawned again, later ones are destroyed",
    "traffic lights: state, times of green, yellow and red, frozen or not",
    "weather",
    "route, progress on it and step count; the observation, info and image are those of the snapshot",
    "the seed of the Traffic Manager: every restore of a snapshot begins the same sequence of its random numbers",
)
LOSES = (
    "physics inside vehicles: suspension, wheel speeds, engine speed, present gear, tyre slip",
    "how long each traffic light has been in its state (the API only reads it): its phase begins anew",
    "plans of the Traffic Manager: paths, lane changes under way and gaps are made anew",
    "paths of walkers: their controllers are made anew and head for the same destinations",
    "the server's frame number and clock, which go on",
    "actors of other clients, parked vehicles and props of the map, and what collisions have moved or broken",
    "actor ids of what had to be spawned again; collision and lane events on their way when the snapshot was made",
)
WEATHER_FIELDS = (
    "cloudiness",
    "precipitation",
    "precipitation_deposits",
    "wind_intensity",
    "sun_azimuth_angle",
    "sun_altitude_angle",
    "fog_density",
    "fog_distance",
    "fog_falloff",
    "wetness",
    "scattering_intensity",
    "mie_scattering_scale",
    "rayleigh_scattering_scale",
    "dust_storm",
)


@dataclass(frozen=True)
class ActorState:
    """One actor as plain numbers: CARLA's own objects may be views of what changes."""

    location: tuple[float, float, float]
    rotation: tuple[float, float, float]
    """Pitch, yaw, roll in degrees."""
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angular_velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Degrees per second."""
    control: dict[str, Any] = field(default_factory=dict)
    lights: int = 0


@dataclass(frozen=True)
class LightState:
    """One traffic light; `road_id` is its id in the map's OpenDRIVE, which outlives a reload. Seconds."""

    road_id: str
    state: int
    green_s: float
    yellow_s: float
    red_s: float
    frozen: bool


@dataclass(frozen=True)
class WorldState:
    """All that is set again outside of this process."""

    map_name: str
    actors: tuple[tuple[RoadUser, ActorState], ...]
    """The ego vehicle first."""
    lights: tuple[LightState, ...]
    weather: dict[str, float]
    traffic_seed: int


VEHICLE_CONTROL = ("throttle", "steer", "brake", "hand_brake", "reverse", "manual_gear_shift", "gear")


def capture(session: WorldSession, users: Sequence[RoadUser], *, traffic_seed: int) -> WorldState:
    """The world as it is, `users` beginning with the ego vehicle, which has to be there."""
    with session.calling("tell its state"):
        if not session.has(users[0].actor):
            raise SimulatorError("the ego vehicle is gone: another client destroyed it; reset")
        actors = tuple((user, actor_state(user)) for user in users if session.has(user.actor))
        weather = weather_fields(session.world.get_weather())
    return WorldState(session.map_name, actors, light_states(session), weather, traffic_seed)


def put_back(session: WorldSession, traffic: Traffic, world: WorldState, *, ego_is_there: bool) -> list[str]:
    """Put the world into the state `world`; what could not be spawned again is returned by its blueprint.

    Frames are computed on the way (what moved has to be out of the way of what is spawned, and walkers' controllers
    begin in one); all states are set once more after the last of them, so that the next frame begins from there.
    """
    carla, ego = session.carla, world.actors[0][0]
    states = dict(world.actors)
    there = [user for user in traffic.users if user in states and session.has(user.actor)]
    traffic.remove([user for user in traffic.users if user not in there])
    traffic.stop_leading(there)
    traffic.users = there
    if ego_is_there:
        there = [ego, *there]
    with session.calling("set its weather"):
        session.world.set_weather(weather_of(carla, world.weather))
    session.apply(commands(carla, ((user, states[user]) for user in there)))
    session.tick()
    lost: list[RoadUser] = []
    back: list[RoadUser] = []
    for user in (user for user in states if user not in there):
        (back if traffic.respawn(user, _above(carla, states[user])) else lost).append(user)
    if ego in lost:
        raise SimulatorError("the ego vehicle cannot be put back: something stands in its place; reset instead")
    traffic.users = [user for user in states if user is not ego and user not in lost]
    session.tick()
    all_there = [(user, state) for user, state in world.actors if user not in lost]
    session.apply(commands(carla, all_there))
    traffic.set_going([user for user in traffic.users if user.is_walker or user in back])
    traffic.seed(world.traffic_seed)
    restore_lights(session, world.lights)
    session.apply(commands(carla, all_there))
    return [user.blueprint for user in lost]


def actor_state(user: RoadUser) -> ActorState:
    """How `user` is in the frame that was computed last."""
    actor = user.actor
    place = actor.get_transform()
    location = (place.location.x, place.location.y, place.location.z)
    rotation = (place.rotation.pitch, place.rotation.yaw, place.rotation.roll)
    control = actor.get_control()
    if user.is_walker:
        direction = (control.direction.x, control.direction.y, control.direction.z)
        return ActorState(
            location, rotation, control={"direction": direction, "speed": control.speed, "jump": control.jump}
        )
    velocity, turning = actor.get_velocity(), actor.get_angular_velocity()
    return ActorState(
        location,
        rotation,
        velocity=(velocity.x, velocity.y, velocity.z),
        angular_velocity=(turning.x, turning.y, turning.z),
        control={name: getattr(control, name) for name in VEHICLE_CONTROL},
        lights=int(actor.get_light_state()),
    )


def transform_of(carla: Any, state: ActorState) -> Any:
    """The `carla.Transform` of a state."""
    pitch, yaw, roll = state.rotation
    return carla.Transform(carla.Location(*state.location), carla.Rotation(pitch=pitch, yaw=yaw, roll=roll))


def commands(carla: Any, actors: Iterable[tuple[RoadUser, ActorState]]) -> list[Any]:
    """The commands that put each actor into its state."""
    made: list[Any] = []
    for user, state in actors:
        number = user.actor.id
        made.append(carla.command.ApplyTransform(number, transform_of(carla, state)))
        if user.is_walker:
            direction = carla.Vector3D(*state.control["direction"])
            walking = carla.WalkerControl(direction, state.control["speed"], state.control["jump"])
            made.append(carla.command.ApplyWalkerControl(number, walking))
            continue
        made += [
            carla.command.ApplyTargetVelocity(number, carla.Vector3D(*state.velocity)),
            carla.command.ApplyTargetAngularVelocity(number, carla.Vector3D(*state.angular_velocity)),
            carla.command.ApplyVehicleControl(number, carla.VehicleControl(**state.control)),
            carla.command.SetVehicleLightState(number, carla.VehicleLightState(state.lights)),
        ]
    return made


def light_states(session: WorldSession) -> tuple[LightState, ...]:
    """Every traffic light of the map."""
    with session.calling("tell its traffic lights"):
        return tuple(
            LightState(
                road_id=str(light.get_opendrive_id()),
                state=int(light.get_state()),
                green_s=light.get_green_time(),
                yellow_s=light.get_yellow_time(),
                red_s=light.get_red_time(),
                frozen=bool(light.is_frozen()),
            )
            for light in _traffic_lights(session)
        )


def restore_lights(session: WorldSession, states: Sequence[LightState]) -> None:
    """Put the map's traffic lights into `states`; calls the server only for what differs."""
    wanted = {state.road_id: state for state in states}
    carla = session.carla
    with session.calling("set its traffic lights"):
        for light in _traffic_lights(session):
            state = wanted.get(str(light.get_opendrive_id()))
            if state is None:
                continue
            light.set_green_time(state.green_s)
            light.set_yellow_time(state.yellow_s)
            light.set_red_time(state.red_s)
            light.set_state(carla.TrafficLightState.values[state.state])
            if bool(light.is_frozen()) != state.frozen:
                light.freeze(state.frozen)


def weather_fields(weather: Any) -> dict[str, float]:
    """A `carla.WeatherParameters` as plain numbers."""
    return {name: float(getattr(weather, name)) for name in WEATHER_FIELDS}


def weather_of(carla: Any, chosen: str | dict[str, float]) -> Any:
    """The `carla.WeatherParameters` of a preset's name or of fields. Raises `ValueError` for one that is not there."""
    if isinstance(chosen, str):
        presets = [name for name in dir(carla.WeatherParameters) if name[0].isupper()]
        if chosen not in presets:
            raise ValueError(f"weather: there is no preset {chosen!r}: choose one of {', '.join(presets)}")
        return weather_of(carla, weather_fields(getattr(carla.WeatherParameters, chosen)))
    wrong = sorted(set(chosen) - set(WEATHER_FIELDS))
    if wrong:
        raise ValueError(f"weather: no field is named {', '.join(wrong)}: there are {', '.join(WEATHER_FIELDS)}")
    return carla.WeatherParameters(**{name: float(value) for name, value in chosen.items()})


def _above(carla: Any, state: ActorState) -> Any:
    """Half a metre above its place: an actor that touches the ground would not be spawned."""
    place = transform_of(carla, state)
    place.location.z += 0.5
    return place


def _traffic_lights(session: WorldSession) -> Iterable[Any]:
    lights: Iterable[Any] = session.world.get_actors().filter("traffic.traffic_light*")
    return lights
