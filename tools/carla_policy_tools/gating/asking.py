"""Who drives through the server: each observation is a request of its own, and every answer is waited for.

Not the vehicle's client: that gives up an answer that is late, and what is late is right all the same.
"""

from __future__ import annotations

import io
import json
import time
from typing import Any

import numpy as np
import requests
from requests.auth import AuthBase

from carla_policy.actions import CONTROLS
from carla_policy.card import ModelCard
from carla_policy.golden import FloatArray
from carla_policy.media import JSON_MEDIA_TYPE, NPY_MEDIA_TYPE
from carla_policy.npy import dump_npy
from carla_policy_tools.client import request_body
from carla_policy_tools.driving.records import Answer
from carla_policy_tools.gating.errors import GateError
from carla_policy_tools.urls import local_session

WIRES = ("json", "npy")
TIMEOUT_S = 60.0
PATIENCE_S = 30.0
"""How long to ask again where the server is busy, or gives its safe action because it is."""
PAUSE_S = 0.1
LATE_KINDS = frozenset({"deadline", "circuit_open"})
"""Interventions that say how the server fares, not what the version does."""


def check_wire(wire: str, card: ModelCard) -> None:
    """`ValueError` for a form that there is not, or that cannot carry what the version of `card` needs."""
    if wire not in WIRES:
        raise ValueError(f"--wire {wire}: expected one of {', '.join(WIRES)}")
    if card.recurrent and wire == "npy":
        raise ValueError(f"--wire npy: {card.version} is recurrent, and its state travels in JSON only")


class AskingPilot:
    """Drives by the answers of the version at `url`, always the mode, over one connection. Use as a context manager.

    `GateError` for an answer that is none: whoever answers is not fit to be compared. `asked_again` counts answers that
    came too late for a deadline that the version's own card sets.
    """

    def __init__(
        self, url: str, version: str, *, recurrent: bool = False, wire: str = "json", auth: AuthBase | None = None
    ) -> None:
        self._url, self._version, self._recurrent, self._wire = url, version, recurrent, wire
        self._session = local_session(auth)
        self._state: str | None = None
        self._step = 0
        self.asked_again = 0

    def __enter__(self) -> AskingPilot:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def begin(self) -> None:
        self._state, self._step = None, 0

    def act(self, row: FloatArray) -> Answer:
        started = time.perf_counter()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            response = self._post(row, deadline)
            kinds = tuple(filter(None, response.headers.get("x-policy-interventions", "").split(",")))
            if not LATE_KINDS.intersection(kinds):
                break
            self.asked_again += 1
            self._wait(deadline, f"answers with its safe action ({', '.join(sorted(LATE_KINDS.intersection(kinds)))})")
        try:
            controls = self._read(response)
        except (ValueError, KeyError, TypeError, IndexError):
            raise GateError(f"{self._where}: not an answer: {response.text[:200]!a}") from None
        self._step += 1
        return Answer(controls, latency_s=time.perf_counter() - started, interventions=kinds)

    def _post(self, row: FloatArray, deadline: float) -> requests.Response:
        """The answer, asked again while the server is busy or its connection breaks: asking twice changes nothing."""
        body, media_type = self._request(row)
        while True:
            try:
                response = self._session.post(
                    self._url, data=body, headers={"Content-Type": media_type}, timeout=TIMEOUT_S
                )
            except requests.RequestException as error:
                self._wait(deadline, f"gives no answer ({type(error).__name__})")
                continue
            if response.ok:
                return response
            if response.status_code != 503 or "DRAINING" in response.text:
                raise GateError(f"{self._where}: the server refuses with {response.status_code}: {response.text[:300]}")
            self._wait(deadline, "is busy (503)")

    def _wait(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise GateError(f"{self._where}: the server {what}, for {PATIENCE_S:g} s; try when it has less to do")
        time.sleep(PAUSE_S)

    @property
    def _where(self) -> str:
        return f"step {self._step}: {self._version}"

    def _request(self, row: FloatArray) -> tuple[bytes, str]:
        if self._wire == "npy":
            return dump_npy(row[None]), NPY_MEDIA_TYPE
        start = self._recurrent and self._state is None
        body = request_body(row[None], episode_start=start)
        return json.dumps(body if self._state is None else {**body, "state": self._state}).encode(), JSON_MEDIA_TYPE

    def _read(self, response: requests.Response) -> FloatArray:
        if response.headers.get("x-policy-version") != self._version:
            raise ValueError
        if self._wire == "npy":
            controls: FloatArray = np.load(io.BytesIO(response.content), allow_pickle=False)
            if controls.shape != (1, len(CONTROLS)) or controls.dtype != np.float32:
                raise ValueError
            return controls.reshape(-1)
        answer: dict[str, Any] = response.json()
        self._state = str(answer["state"]) if self._recurrent else None
        (action,) = answer["actions"]
        return np.array([action[name] for name in CONTROLS], np.float32)
