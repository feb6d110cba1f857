"""`CarlaEnv`: a Gymnasium environment whose simulator is a service somewhere else, CARLA's or any other.

What it is given and gives has the bits that the simulator took and gave, so a roll-out is the same as in process.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import socket
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from carla_policy_environment.actions import action_to_json, plain
from carla_policy_environment.api_client import ServiceClient
from carla_policy_environment.episode import Episode, Prefix
from carla_policy_environment.errors import RequestRefused, ServiceError, SessionExpired
from carla_policy_environment.infos import info_from_json
from carla_policy_environment.spaces import (
    InvalidValue,
    space_from_json,
    value_from_json,
)

T = TypeVar("T")
DEFAULT_URL = "http://localhost:8090"
SESSION_IDLE_S = 60.0
"""A session that was idle for longer is opened again, unless somebody else has one then."""


class CarlaEnv(gymnasium.Env[Any, Any]):
    """The environment that the service at `server_url` simulates.

    `timeout`: seconds that the service may be silent. `max_steps`: an episode is truncated after so many steps, beside
    what the service itself does. `frame_skip`: each action is taken so many times and the rewards are added; the
    service's own `--frame-skip` does that with one request. `reward_type`: "dense" or "sparse", what a CARLA service
    has to be configured with; another is refused.
    `render_mode`: "rgb_array" or none. `exclusive`: hold a session from the first reset until `close`, so that nobody
    else steps the same simulator; another's session raises `ServiceBusy`.

    Errors are those of `errors`: `ServiceUnavailable`, `SimulatorFailed` and `EpisodeLost` end the episode, and `reset`
    begins another as soon as the service is well; `RequestRefused`, a `ValueError`, leaves it as it was. An answer
    that was lost on its way is asked for again; the simulator never steps twice for it.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self,
        server_url: str = DEFAULT_URL,
        *,
        timeout: float = 60.0,
        max_steps: int | None = None,
        frame_skip: int = 1,
        reward_type: str | None = None,
        render_mode: str | None = None,
        exclusive: bool = True,
    ) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        if frame_skip < 1:
            raise ValueError(f"frame_skip: expected at least 1, got {frame_skip}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self._client = ServiceClient(server_url, timeout)
        self.server_url = self._client.url
        self.max_steps = max_steps
        self.frame_skip = frame_skip
        self.reward_type = reward_type
        self.render_mode = render_mode
        self.exclusive = exclusive
        self._episode: Episode | None = None
        self._snapshots: dict[str, Episode] = {}
        self.service_info: dict[str, Any] = {}
        """What /info says: the simulator, its spaces, what snapshots bring back and what they lose."""
        try:
            self._learn()
        except BaseException:
            self._client.close()
            raise

    @property
    def episode_id(self) -> str | None:
        """The service's name for the episode that is under way."""
        return self._episode.id if self._episode else None

    @property
    def action_layout(self) -> tuple[str, ...] | None:
        """The names of the action's elements, such as steer, throttle, brake; `None` where the service tells none."""
        names = self.service_info.get("details", {}).get("action_names")
        return None if names is None else tuple(map(str, names))

    @property
    def step_s(self) -> float | None:
        """Simulated seconds of a call of `step`; `None` where the simulator does not say."""
        step_s = self.service_info.get("step_s")
        return None if step_s is None else float(step_s) * self.frame_skip

    @property
    def prefix(self) -> Prefix:
        """What led to the present state; `ValueError` where that is not known."""
        episode = self._standing()
        if episode.seed is None or episode.actions is None:
            reason = "was reset without a seed" if episode.actions is not None else "came from another's snapshot"
            raise ValueError(f"what led to this state cannot be replayed: the episode {reason}; reset with a seed")
        return Prefix(episode.seed, copy.deepcopy(episode.options), tuple(episode.actions), tuple(episode.rewards))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; `options` are the simulator's own, as JSON."""
        super().reset(seed=seed)
        wanted = plain(dict(options or {}))
        self._episode = None
        content = {"seed": None if seed is None else int(seed), "options": wanted}
        answer = self._post("/reset", content, repeatable=seed is not None)
        self._episode = Episode(answer["episode_id"], None if seed is None else int(seed), wanted)
        return self._observation(answer["observation"]), info_from_json(answer["info"])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take `action`, `frame_skip` times; `ValueError` names the element that is not in the action space."""
        episode = self._standing()
        if episode.over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() first")
        encoded = self.encode_action(action)
        reward, terminated, truncated = 0.0, False, False
        answer: dict[str, Any] = {}
        for _ in range(self.frame_skip):
            answer = self._step_once(episode, encoded)
            reward += float(answer["reward"])
            terminated, truncated = bool(answer["terminated"]), bool(answer["truncated"])
            if terminated or truncated:
                break
        episode.steps += 1
        if episode.actions is not None:
            episode.actions.append(copy.deepcopy(action))
            episode.rewards.append(reward)
        truncated = truncated or (self.max_steps is not None and episode.steps >= self.max_steps)
        episode.over = terminated or truncated
        return self._observation(answer["observation"]), reward, terminated, truncated, info_from_json(answer["info"])

    def render(self) -> NDArray[np.uint8] | None:
        """The present state as an RGB image `[height, width, 3]`, where `render_mode` is "rgb_array"."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() shows nothing without render_mode="rgb_array".')
            return None
        from PIL import Image

        with Image.open(io.BytesIO(self._client.get_bytes("/render"))) as image:
            return np.array(image.convert("RGB"))

    def close(self) -> None:
        """Give the service back; a later `reset` takes it again."""
        if self._client.session_id:
            with contextlib.suppress(ServiceError):
                self._client.delete(f"/session/{self._client.session_id}", timeout=2.0)
            self._client.session_id = None
        self._client.close()

    def save_snapshot(self, name: str | None = None) -> str:
        """Let the service keep the present state in its memory: the id to restore it by, until it is deleted.

        `service_info["snapshots"]` says how many there may be, and what a restore cannot bring back.
        """
        episode = self._standing()
        snapshot_id = str(self._post("/snapshot/create", {} if name is None else {"name": name})["snapshot_id"])
        self._snapshots[snapshot_id] = episode.copy()
        return snapshot_id

    def restore_snapshot(self, snapshot_id: str) -> tuple[Any, dict[str, Any]]:
        """Go back to a snapshot, as often as wanted: its observation and info, as `reset` returns them."""
        answer = self._post("/snapshot/restore", {"snapshot_id": snapshot_id}, repeatable=True)
        step = int(answer["step"])
        unknown = Episode(answer["episode_id"], steps=step // self.frame_skip, actions=None)
        self._episode = self._snapshots.get(snapshot_id, unknown).copy()
        self._episode.id, self._episode.service_step = answer["episode_id"], step
        return self._observation(answer["observation"]), info_from_json(answer["info"])

    def list_snapshots(self) -> list[dict[str, Any]]:
        """The snapshots that the service holds, whoever made them, oldest first."""
        return list(self._client.get("/snapshot/list")["snapshots"])

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Free the memory of a snapshot."""
        self._with_session(lambda: self._client.delete(f"/snapshot/{snapshot_id}"))
        self._snapshots.pop(snapshot_id, None)

    def health(self, timeout: float = 2.0) -> dict[str, Any]:
        """What /health says; `ServiceUnavailable` if nothing does."""
        return self._client.health(timeout)

    def encode_action(self, action: Any) -> Any:
        """`action` as JSON; `ValueError` names what is not in the action space."""
        return action_to_json(self.action_space, action)

    def _learn(self) -> None:
        self.service_info = self._client.get("/info")
        try:
            self.observation_space = space_from_json(self.service_info["observation_space"])
            self.action_space = space_from_json(self.service_info["action_space"])
        except (KeyError, ValueError) as error:
            raise ServiceError(f"what answers there is no environment service: {error}", url=self.server_url) from None
        if self.step_s:
            self.metadata = {**self.metadata, "render_fps": max(1, round(1 / self.step_s))}  # type: ignore[misc]
        self._check_reward_type()

    def _check_reward_type(self) -> None:
        has = self.service_info.get("details", {}).get("reward")
        if self.reward_type not in (None, has):
            known = f"its reward is {has!r}" if has else f"{self.service_info['simulator']} has the environment's own"
            advice = "that is a matter of its configuration, when it is started"
            raise ValueError(f"reward_type: expected {self.reward_type!r} of {self.server_url}, but {known}; {advice}")

    def _standing(self) -> Episode:
        if self._episode is None:
            raise gymnasium.error.ResetNeeded("no episode is under way: call reset() first")
        return self._episode

    def _step_once(self, episode: Episode, action: Any) -> dict[str, Any]:
        content = {"action": action, "episode_id": episode.id, "step": episode.service_step + 1}
        try:
            answer = self._post("/step", content, repeatable=True)
        except RequestRefused:
            raise
        except ServiceError:
            self._episode = None
            raise
        episode.service_step = int(answer["step"])
        return answer

    def _post(self, path: str, content: dict[str, Any], *, repeatable: bool = False) -> dict[str, Any]:
        return self._with_session(lambda: self._client.post(path, content, repeatable=repeatable))

    def _with_session(self, request: Callable[[], T]) -> T:
        """`request` within our session, which may have ended while nothing was asked for long."""
        if not self.exclusive:
            return request()
        if self._client.session_id is None:
            self._open_session()
        try:
            return request()
        except SessionExpired:
            self._client.session_id = None
            self._open_session()
            return request()

    def _open_session(self) -> None:
        content = {
            "name": f"CarlaEnv on {socket.gethostname()}, process {os.getpid()}",
            "idle_timeout_s": SESSION_IDLE_S,
        }
        self._client.session_id = str(self._client.post("/session", content)["session_id"])

    def _observation(self, content: Any) -> Any:
        try:
            return value_from_json(self.observation_space, content, ("observation",), any_dtype=True)
        except InvalidValue as error:
            self._episode = None
            raise ServiceError(
                f"its answer is not in its own observation space: {error}", url=self.server_url
            ) from None
