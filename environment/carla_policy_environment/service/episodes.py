"""The service itself, apart from HTTP: one simulator, its episode, and one request after another."""

from __future__ import annotations

import io
import logging
import math
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from PIL import Image

from carla_policy_environment import __version__
from carla_policy_environment.infos import info_to_json
from carla_policy_environment.service.errors import ServiceError, conflict, dumps, invalid_action
from carla_policy_environment.service.records import Episode, Snapshot, Snapshots
from carla_policy_environment.service.sessions import Sessions, now
from carla_policy_environment.service.settings import ServiceSettings
from carla_policy_environment.service.simulator_thread import SimulatorThread
from carla_policy_environment.service.telemetry import Telemetry
from carla_policy_environment.service.turns import Turns
from carla_policy_environment.simulators.base import InvalidOptions, Simulator
from carla_policy_environment.spaces import (
    InvalidValue,
    UnsupportedSpace,
    out_of_bounds,
    space_to_json,
    value_from_json,
    value_to_json,
)

T = TypeVar("T")
log = logging.getLogger(__name__)


class EnvironmentService:
    """One simulator, made by `make_simulator` in a thread of its own; raises whatever that raises."""

    def __init__(self, make_simulator: Callable[[], Simulator], settings: ServiceSettings | None = None) -> None:
        self.settings = settings or ServiceSettings()
        self.sessions, self.telemetry = Sessions(), Telemetry()
        self._thread = SimulatorThread(make_simulator)
        self.simulator = self._thread.simulator
        try:
            self._spaces = {
                "observation_space": space_to_json(self.simulator.observation_space, ("observation_space",)),
                "action_space": space_to_json(self.simulator.action_space, ("action_space",)),
            }
        except UnsupportedSpace:
            self.close()
            raise
        self._episode: Episode | None = None
        self._snapshots = Snapshots(self.settings.snapshot_limit)
        self._turns = Turns(self._thread, self.settings.time_limit_s)
        self._started = time.monotonic()

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close the simulator; false, and a warning, if that has not ended within `timeout_s`."""
        closed = self._thread.close(timeout_s)
        if not closed:
            log.warning("%s did not end what it was doing, and was not closed", self.simulator.name)
        return closed

    @property
    def reason(self) -> str | None:
        """Why the service is unhealthy; `None` if it is not."""
        return self._turns.stuck or self._turns.failure

    def health(self) -> dict[str, Any]:
        """The answer of /health."""
        episode, session = self._episode, self.sessions.open
        return {
            "status": "unhealthy" if self.reason else "ok",
            "simulator": self.simulator.name,
            "reason": self.reason,
            "episode_id": episode.episode_id if episode else None,
            "step": episode.step if episode else None,
            "session_id": session.session_id if session else None,
            "uptime_s": round(time.monotonic() - self._started, 3),
            "version": __version__,
        }

    def info(self) -> dict[str, Any]:
        """The answer of /info."""
        simulator, settings = self.simulator, self.settings
        return {
            "simulator": simulator.name,
            "environment": simulator.environment,
            **self._spaces,
            "step_s": simulator.step_s * settings.frame_skip if simulator.step_s is not None else None,
            "max_steps": settings.max_steps,
            "frame_skip": settings.frame_skip,
            "renders": simulator.renders,
            "snapshots": {
                "supported": simulator.no_snapshots is None,
                "reason": simulator.no_snapshots,
                "restores": list(simulator.restores),
                "loses": list(simulator.loses),
                "limit": settings.snapshot_limit,
            },
            "time_limit_s": settings.time_limit_s,
            "details": info_to_json(simulator.details)[0],
            "version": __version__,
        }

    def observation(self) -> dict[str, Any]:
        """The answer of /observation."""
        episode = self._begun()
        return episode.observed | episode.place

    async def reset(self, seed: int | None, options: dict[str, Any], session_id: str | None = None) -> bytes:
        """Begin an episode: the answer of /reset."""

        async def body() -> bytes:
            self.sessions.check(session_id)

            def begin() -> dict[str, Any]:
                return self._observed(*self.simulator.reset(seed, options))

            try:
                observed = await self._turns.call("reset", begin, must_succeed=True)
            except ServiceError as error:
                over = self._turns.failure or isinstance(error.__cause__, InvalidOptions)
                self._episode = None if over else self._episode
                raise
            self._turns.failure = None
            self._episode = episode = Episode(uuid.uuid4().hex, 0, observed)
            self._tell("reset", episode)
            return dumps(observed | episode.place)

        return await self._alone("reset", session_id, body)

    async def step(
        self, action: Any, episode_id: str | None = None, step: int | None = None, session_id: str | None = None
    ) -> bytes:
        """Go one step on: the answer of /step, and the same again for a repeat of the last step."""

        async def body() -> bytes:
            self.sessions.check(session_id)
            episode = self._begun()
            if episode_id not in (None, episode.episode_id):
                raise conflict("EpisodeOver", f"episode {episode_id} is over; the present one is {episode.episode_id}")
            if step == episode.step and episode.answer is not None:
                if action != episode.action:
                    raise conflict("StepDone", f"step {step} was done with another action; the next is {step + 1}")
                return episode.answer
            self._check_goes_on(episode)
            number = episode.step + 1
            if step not in (None, number):
                raise conflict("WrongStep", f"the next step of episode {episode.episode_id} is {number}, got {step}")
            decoded = self._decode(action)
            answer, ended = await self._turns.call(
                f"step {number}", lambda: self._advance(decoded, number), must_succeed=True
            )
            observed = {key: answer[key] for key in ("observation", "info", "info_left_out")}
            encoded = dumps(answer | {"episode_id": episode.episode_id, "step": number})
            self._episode = Episode(episode.episode_id, number, observed, ended, action, encoded)
            self._tell("step", self._episode, action=action, **answer)
            return encoded

        return await self._alone("step", session_id, body)

    async def render(self) -> bytes:
        """The present state as PNG; 404 if the simulator has no images."""

        def draw() -> bytes | None:
            image = self.simulator.render()
            if image is None:
                return None
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG", compress_level=1)
            return file.getvalue()

        async def body() -> bytes:
            self._begun()
            if (image := await self._turns.call("render", draw)) is None:
                raise ServiceError(404, "NotRendering", f"{self.simulator.environment} does not render images")
            return image

        return await self._alone("render", None, body)

    async def create_snapshot(self, name: str | None, session_id: str | None = None) -> dict[str, Any]:
        """Keep the present state: the answer of /snapshot/create."""

        async def body() -> dict[str, Any]:
            self.sessions.check(session_id)
            episode = self._begun()
            if self._turns.failure:
                raise self._reset_required()
            self._snapshots.check_room()
            state, ms = await self._turns.call("snapshot", lambda: _timed(self.simulator.snapshot))
            episode = replace(episode, action=None, answer=None)
            snapshot = Snapshot(uuid.uuid4().hex, name, now(), episode, state)
            self._snapshots.add(snapshot)
            return snapshot.entry | {"ms": ms}

        return await self._alone("snapshot", session_id, body)

    async def restore_snapshot(self, snapshot_id: str, session_id: str | None = None) -> bytes:
        """Go back to a snapshot: the answer of /snapshot/restore."""

        async def body() -> bytes:
            self.sessions.check(session_id)
            snapshot = self._snapshots[snapshot_id]

            def go_back() -> tuple[dict[str, Any], float]:
                restored, ms = _timed(lambda: self.simulator.restore(snapshot.state))
                return self._observed(*restored), ms

            observed, ms = await self._turns.call("restore", go_back, must_succeed=True)
            self._turns.failure = None
            self._episode = episode = replace(snapshot.episode, observed=observed)
            self._tell("restore", episode)
            return dumps(observed | episode.place | {"ms": ms})

        return await self._alone("restore", session_id, body)

    def list_snapshots(self) -> dict[str, Any]:
        """The answer of /snapshot/list, oldest first."""
        return {"snapshots": self._snapshots.entries}

    def delete_snapshot(self, snapshot_id: str, session_id: str | None = None) -> None:
        """Forget a snapshot; 404 if there is none of this name."""
        self.sessions.check(session_id)
        self._snapshots.remove(snapshot_id)

    async def _alone(self, name: str, session_id: str | None, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `body` when all requests before it are done; a session that is used does not expire."""

        async def used() -> T:
            try:
                return await body()
            finally:
                self.sessions.touch(session_id)

        return await self._turns.alone(name, used)

    def _advance(self, action: Any, number: int) -> tuple[dict[str, Any], bool]:
        total, terminated, truncated = 0.0, False, False
        for _ in range(self.settings.frame_skip):
            observation, reward, ended, cut, info = self.simulator.step(action)
            total, terminated, truncated = total + float(reward), bool(ended), bool(cut)
            if terminated or truncated:
                break
        if not math.isfinite(total):
            raise InvalidValue(("reward",), f"expected a finite number, got {total}")
        truncated = truncated or number == self.settings.max_steps
        ending = {"reward": total, "terminated": terminated, "truncated": truncated}
        return self._observed(observation, info) | ending, terminated or truncated

    def _observed(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        encoded = value_to_json(self.simulator.observation_space, observation, ("observation",))
        content, left_out = info_to_json(info)
        return {"observation": encoded, "info": content, "info_left_out": left_out}

    def _decode(self, action: Any) -> Any:
        space = self.simulator.action_space
        try:
            decoded = value_from_json(space, action, ("action",))
        except InvalidValue as error:
            raise invalid_action([error]) from None
        if problems := list(out_of_bounds(space, decoded, ("action",))):
            raise invalid_action(problems)
        return decoded

    def _tell(self, event: str, episode: Episode, **more: Any) -> None:
        if self.telemetry.is_read:
            blank = {"action": None, "reward": None, "terminated": None, "truncated": None}
            message = {"event": event, **episode.place, "time": now(), **blank, **episode.observed, **more}
            self.telemetry.publish(dumps(message).decode())

    def _begun(self) -> Episode:
        if self._episode is None:
            raise self._reset_required()
        return self._episode

    def _check_goes_on(self, episode: Episode) -> None:
        if self._turns.failure:
            raise self._reset_required()
        if episode.ended:
            raise conflict("ResetRequired", f"the episode ended with step {episode.step}; POST /reset begins another")

    def _reset_required(self) -> ServiceError:
        why = f"since {self._turns.failure}" if self._turns.failure else "no episode has begun"
        return conflict("ResetRequired", f"{why}; POST /reset begins one")


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return function(), round((time.perf_counter() - start) * 1000, 3)
