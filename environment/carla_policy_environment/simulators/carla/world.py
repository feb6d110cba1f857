"""The connection to a CARLA server: versions, map, synchronous clock, and leaving the world as it was found.

In synchronous mode the server computes a frame when `tick` asks for it and then waits: a client that goes away without
restoring the settings leaves a server that stands still. So `close` restores them whatever else fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from carla_policy_environment.simulators.base import SimulatorError
from carla_policy_environment.simulators.carla.config import CarlaConfig
from carla_policy_environment.simulators.carla.package import client_package, require_same_version

logger = logging.getLogger(__name__)

CLOSING_TIMEOUT_S = 2.0
ClientFactory = Callable[[str, int], Any]


class WorldSession:
    """One connection and the world behind it, in synchronous mode until it is closed. Used in one thread."""

    def __init__(self, config: CarlaConfig, *, client_factory: ClientFactory | None = None) -> None:
        """Connect and take over the world's clock. Raises `SimulatorError`; then nothing has changed at the server."""
        self.config = config
        self.carla = client_package()
        self.address = f"{config.host}:{config.port}"
        self._traffic_manager: Any = None
        self._recording = False
        self._former: Any = None
        self.frame = 0
        with self.calling("answer"):
            self.client = (client_factory or self.carla.Client)(config.host, config.port)
            self.client.set_timeout(config.timeout_s)
            self.server_version = self.client.get_server_version()
        if config.version_check:
            require_same_version(self.client.get_client_version(), self.server_version)
        with self.calling("hand over its world"):
            self.world = self.client.get_world()
            self._former = self.world.get_settings()
        self.was_synchronous = bool(self._former.synchronous_mode)
        if self.was_synchronous:
            logger.warning(
                "CARLA at %s is already in synchronous mode: another client ticks it, or one that crashed left it so; "
                "two clients that tick one server disturb each other",
                self.address,
            )
        try:
            self._load_map()
            self._take_clock()
            self.destroy(self._leftovers())
            self.tick()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def calling(self, what: str) -> Iterator[None]:
        """Turn the client's `RuntimeError`s, such as time-outs, into `SimulatorError`s that say what was asked."""
        try:
            yield
        except SimulatorError:
            raise
        except RuntimeError as error:
            raise SimulatorError(f"CARLA at {self.address} did not {what}: {str(error).strip()}") from error

    @property
    def map(self) -> Any:
        """The world's `carla.Map`, read once for each world."""
        return self._map

    @property
    def map_name(self) -> str:
        """Such as Town03, without the folder that some servers put before it."""
        return map_name(self._map.name)

    def tick(self) -> int:
        """Compute one frame and return its number; what was commanded before has happened in it."""
        with self.calling("compute a frame"):
            self.frame = int(self.world.tick(self.config.timeout_s))
        return self.frame

    def reload(self) -> None:
        """Load the map anew: every actor is gone and the server's clock begins again."""
        with self._patient(), self.calling("reload its map"):
            self.world = self.client.reload_world(False)
            self._map = self.world.get_map()
        self._take_clock()
        self.tick()

    def blueprint(self, name: str) -> Any:
        """The blueprint `name`. Raises `ValueError` that lists those of its kind if there is none."""
        with self.calling("list its blueprints"):
            library = self.world.get_blueprint_library()
            try:
                return library.find(name)
            except IndexError:
                kind = ".".join(name.split(".")[:2])
                near = sorted(b.id for b in library.filter(f"{kind}*")) or sorted(
                    b.id for b in library.filter("vehicle.*")
                )
        raise ValueError(f"the simulator has no blueprint {name!r}; it has {', '.join(near[:20])}")

    def apply(self, commands: Sequence[Any]) -> None:
        """Carry out commands between two frames, in their order. Raises `SimulatorError` naming what failed."""
        if not commands:
            return
        with self.calling("carry out commands"):
            responses = self.client.apply_batch_sync(list(commands), False)
        failed = [response.error for response in responses if response.error]
        if failed:
            raise SimulatorError(f"{len(failed)} of {len(commands)} commands failed, the first: {failed[0]}")

    def destroy(self, actors: Sequence[Any]) -> None:
        """Take `actors` out of the world; those that are gone already do not matter."""
        if actors:
            with self.calling("destroy actors"):
                self.client.apply_batch_sync([self.carla.command.DestroyActor(actor.id) for actor in actors], False)

    def has(self, actor: Any) -> bool:
        """Whether `actor` is in the frame that was computed last."""
        with self.calling("tell its actors"):
            return bool(actor.is_alive) and bool(self.world.get_snapshot().has_actor(actor.id))

    def traffic_manager(self) -> Any:
        """CARLA's Traffic Manager in this process, in step with the world's clock; started when first asked for."""
        if self._traffic_manager is None:
            with self.calling(f"start a Traffic Manager on port {self.config.traffic.port}"):
                manager = self.client.get_trafficmanager(self.config.traffic.port)
                manager.set_synchronous_mode(True)
            self._traffic_manager = manager
        return self._traffic_manager

    def start_recording(self, episode: int) -> None:
        """Have the server record this episode, if the configuration wants it; the former recording ends."""
        if self.config.recording is not None:
            self._stop_recording()
            with self.calling("start its recorder"):
                self.client.start_recorder(self.config.recording.replace("{episode}", str(episode)), True)
            self._recording = True

    def follow(self, transform: Any) -> None:
        """Put the server's own window behind and above `transform`."""
        forward = transform.get_forward_vector()
        place = self.carla.Location(
            x=transform.location.x - 8.0 * forward.x,
            y=transform.location.y - 8.0 * forward.y,
            z=transform.location.z + 5.0,
        )
        turn = self.carla.Rotation(pitch=-20.0, yaw=transform.rotation.yaw)
        with self.calling("move its spectator"):
            self.world.get_spectator().set_transform(self.carla.Transform(place, turn))

    def hurry(self) -> None:
        """Wait less for each answer from now on: what follows is closing."""
        self.client.set_timeout(min(CLOSING_TIMEOUT_S, self.config.timeout_s))

    def close(self) -> None:
        """Leave the world as it was found: every step of that is tried, and failures are logged."""
        if self._former is None:
            return
        former, self._former = self._former, None
        self.hurry()
        if self.config.world.on_close == "asynchronous":
            former.synchronous_mode = False
        for what, action in (
            ("stop its recorder", self._stop_recording),
            ("release its Traffic Manager", self._release_traffic_manager),
            ("take its former settings back", lambda: self.world.apply_settings(former, CLOSING_TIMEOUT_S)),
        ):
            try:
                with self.calling(what):
                    action()
            except SimulatorError as error:
                logger.warning("%s", error)

    def _stop_recording(self) -> None:
        if self._recording:
            self._recording = False
            self.client.stop_recorder()

    def _release_traffic_manager(self) -> None:
        if self._traffic_manager is not None:
            manager, self._traffic_manager = self._traffic_manager, None
            manager.set_synchronous_mode(False)
            manager.shut_down()

    def _load_map(self) -> None:
        wanted = self.config.world.map
        with self._patient(), self.calling(f"load its map{f' {wanted}' if wanted else ''}"):
            self._map = self.world.get_map()
            if wanted is not None and map_name(wanted) != self.map_name:
                there = sorted(map_name(name) for name in self.client.get_available_maps())
                if map_name(wanted) not in there:
                    raise SimulatorError(f"the simulator has no map {wanted}; it has {', '.join(there)}")
                self.world = self.client.load_world(wanted)
                self._map = self.world.get_map()

    def _take_clock(self) -> None:
        chosen = self.config.world
        with self.calling("take the settings of synchronous mode"):
            settings = self.world.get_settings()
            settings.synchronous_mode = True
            settings.fixed_delta_seconds = chosen.fixed_delta_s
            settings.substepping = True
            settings.max_substep_delta_time = chosen.max_substep_s
            settings.max_substeps = chosen.max_substeps
            settings.no_rendering_mode = chosen.no_rendering
            settings.deterministic_ragdolls = chosen.deterministic_ragdolls
            self.world.apply_settings(settings, self.config.timeout_s)

    def _leftovers(self) -> list[Any]:
        """What a run that crashed left: sensors on such vehicles go before the vehicles that carry them."""
        with self.calling("list its actors"):
            actors = list(self.world.get_actors())
        roles = self.config.world.leftovers
        owners = {actor.id for actor in actors if actor.attributes.get("role_name") in roles}
        carried = [a for a in actors if a.id not in owners and a.parent is not None and a.parent.id in owners]
        if owners:
            logger.warning("destroying %d road users that an earlier run left in the simulator", len(owners))
        return carried + [actor for actor in actors if actor.id in owners]

    @contextmanager
    def _patient(self) -> Iterator[None]:
        self.client.set_timeout(max(self.config.load_timeout_s, self.config.timeout_s))
        try:
            yield
        finally:
            self.client.set_timeout(self.config.timeout_s)


def map_name(name: str) -> str:
    """The last part of a map's path: Town03 of /Game/Carla/Maps/Town03 or Carla/Maps/Town03."""
    return name.rsplit("/", 1)[-1]
