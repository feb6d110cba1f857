"""Environment services for tests: a simulator that does what a test says, served for real in a thread."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import numpy as np
import requests
import uvicorn
from gymnasium import spaces

from carla_policy_environment.service.episodes import EnvironmentService
from carla_policy_environment.service.server import configuration, listening_socket
from carla_policy_environment.service.settings import ServiceSettings
from carla_policy_environment.simulators.base import Simulator

OPEN = Event()
OPEN.set()


class Scripted(Simulator):
    """Counts its steps; a test sets what a step, a reset or a restore answers with, raises, or waits for."""

    name, environment, step_s, renders = "scripted", "a script", 0.1, True
    restores, loses = ("the count",), ("the script",)
    details = {"release": np.float32(0.5)}

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        self.forget_script()

    def forget_script(self) -> None:
        self.steps = 0
        self.at_once = self.most_at_once = 0
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self.gate, self.entered = OPEN, Event()
        self.step_error: BaseException | None = None
        self.reset_error: BaseException | None = None
        self.observation: Any = None
        self.reward: Any = 1.5
        self.info: Any = {}
        self.ends_at: int | None = None

    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.reset_error:
            raise self.reset_error
        self.steps = 0
        self.seeds.append(seed)
        return self._observe(), {"options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.entered.set()
        try:
            assert self.gate.wait(30)
            if self.step_error:
                raise self.step_error
            self.steps += 1
            self.actions.append(action)
            return self._observe(), self.reward, self.steps == self.ends_at, False, self.info
        finally:
            self.at_once -= 1

    def render(self) -> Any:
        return np.full((2, 3, 3), self.steps, np.uint8)

    def snapshot(self) -> object:
        return self.steps

    def restore(self, state: object) -> tuple[Any, dict[str, Any]]:
        assert isinstance(state, int)
        self.steps = state
        return self._observe(), {}

    def close(self) -> None:
        self.gate.set()

    def _observe(self) -> Any:
        return np.array([self.steps, 0.1], np.float32) if self.observation is None else self.observation


class Served:
    """A context manager around a service of `make_simulator`, with its URL and shorthands for requests."""

    def __init__(self, make_simulator: Callable[[], Simulator], **settings: Any) -> None:
        self.service = EnvironmentService(make_simulator, ServiceSettings(**settings))
        self._socket = listening_socket("127.0.0.1", 0)
        self.address = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._server = uvicorn.Server(configuration(self.service))
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._http = requests.Session()

    def __enter__(self) -> Served:
        self._thread.start()
        assert until(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()
        assert self.service.close()

    def get(self, path: str) -> requests.Response:
        return self._http.get(self.url + path, timeout=30)

    def delete(self, path: str, **headers: str) -> requests.Response:
        return self._http.delete(self.url + path, timeout=30, headers=_header(headers))

    def post(self, path: str, content: Any = None, **headers: str) -> requests.Response:
        """POST `content`, bytes as they are and anything else as JSON."""
        data = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        sent = {"content-type": "application/json", **_header(headers)}
        return requests.post(self.url + path, data=data, headers=sent, timeout=30)

    def step(self, action: Any = (0.0, 0.5), **more: Any) -> requests.Response:
        return self.post("/step", {"action": action, **more})

    def leave_in_a_step(self, content: dict[str, Any]) -> None:
        """Ask for a step and go away as soon as the simulator is in it."""
        body = json.dumps(content).encode()
        head = (
            f"POST /step HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(self.address[:2]) as connection:
            connection.sendall(head.encode() + body)
            simulator = self.service.simulator
            assert isinstance(simulator, Scripted)
            assert simulator.entered.wait(30)


def until(condition: Callable[[], bool]) -> bool:
    """Whether `condition` has come to hold."""
    deadline = time.monotonic() + 30
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds


def _header(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
