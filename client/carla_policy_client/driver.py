"""A step of driving, but for the connection: what is sent, what of the answer is believed, what is done without one.

`PolicyClient` and `AsyncPolicyClient` differ in how they wait. All that decides about actions is here, once.
"""

from __future__ import annotations

import itertools
import time
import uuid
from dataclasses import replace
from typing import Any, Sequence

from carla_policy_client import address, answers, checking, http11, observations
from carla_policy_client.actions import FALLBACK, FULL_BRAKE, OVERRIDE, POLICY, Action
from carla_policy_client.answers import Answer, Asked
from carla_policy_client.breaker import Breaker
from carla_policy_client.fallbacks import Fallback, as_fallback
from carla_policy_client.http11 import Response
from carla_policy_client.memory import Memory
from carla_policy_client.misses import BUSY, CIRCUIT_OPEN, CLOSED, LATE, OBSERVATION, REFUSED, Hangup, Miss
from carla_policy_client.observations import finite
from carla_policy_client.reporting import Report
from carla_policy_client.statistics import Counts, Statistics

MAX_RETURN, MAX_LENGTH = 1e9, 1_000_000_000
"""What the server takes of an episode."""
_INVALID_STATE = "422 INVALID_STATE"
_SERVER_SHARE = 0.9
"""Of what is left of the deadline: the rest is for the answer's way back."""


class Step:
    """One call of `act` or `act_many`."""

    def __init__(self, asked: Asked, memory: Memory, started: float, due: float) -> None:
        self.asked = asked
        self.memory = memory
        self.started = started
        self.due = due
        self.documents: list[dict[str, Any]] = []
        self.was_tried_again = False


class Driver:
    """Thread-safe where it says so; otherwise one step at a time."""

    def __init__(
        self,
        url: str,
        version: str | None,
        deadline_s: float,
        fallback: Action | Fallback,
        vehicle_id: str | None,
        token: str | None,
        model: str,
        failures_to_open: int,
    ) -> None:
        self.address = address.parse(url, version, model)
        self.deadline_s = checking.deadline("deadline_s", deadline_s)
        self.vehicle_id = address.identifier("vehicle_id", vehicle_id or f"vehicle-{uuid.uuid4().hex[:12]}")
        self.breaker = Breaker(checking.integer("failures_to_open", failures_to_open, 1, 1_000_000))
        self.counts = Counts()
        self.episode_id: str | None = None
        self._episode_versions: set[str] = set()
        self.is_closed = False
        self._version = version
        self._fallback = as_fallback(fallback)
        self._override: Action | None = None
        self._vehicle, self._fleet = Memory(), Memory()
        self._authorization = {} if token is None else {"Authorization": address.bearer(token)}
        self._numbers = itertools.count(1)
        self._run = uuid.uuid4().hex[:8]
        self._latest: Step | None = None

    # What a human does.

    def set_override(self, action: Action) -> None:
        """Thread-safe."""
        if not isinstance(action, Action):
            raise TypeError(f"override: expected an Action, got {action!r:.40}")
        self._override = action

    def release(self) -> None:
        """Thread-safe."""
        self._override = None

    def overridden(self, step: Step) -> list[Action] | None:
        action = self._override
        if action is None:
            return None
        taken = replace(action, source=OVERRIDE, latency_s=time.monotonic() - step.started)
        actions = [taken] * step.asked.rows
        self.counts.step(actions)
        return actions

    # A step.

    def begin(self, rows: int, is_fleet: bool, deterministic: bool, seed: int | None) -> Step:
        """Raises `TypeError` or `ValueError` for options that are none."""
        started = time.monotonic()
        asked = Asked(rows, *checking.options(deterministic, seed), self._version, self._next_id())
        memory = self._fleet if is_fleet else self._vehicle
        return Step(asked, memory, started, started + self.deadline_s)

    def admit(self, step: Step, observed: Sequence[Any]) -> None:
        """Take what was observed; raises `Miss` if nothing is to be sent."""
        if time.monotonic() >= step.due:
            raise Miss(BUSY, "another step took all of the deadline")
        if self.is_closed:
            raise Miss(CLOSED, "the client has been closed")
        try:
            step.documents = [observations.document(observation) for observation in observed]
        except Exception as error:  # whatever it is that was given for an observation: the vehicle needs an action
            raise Miss(OBSERVATION, str(error)) from None
        self._latest = step
        if self.breaker.is_open:
            raise Miss(CIRCUIT_OPEN, "the server failed several times in a row, and is probed in the background")

    def request(self, step: Step) -> bytes:
        """What is sent now; raises `Miss` if it is too late for that."""
        options: dict[str, Any] = {"deterministic": step.asked.deterministic}
        if step.asked.seed is not None:
            options["seed"] = step.asked.seed
        options.update(step.memory.options(step.asked.rows))
        body = observations.body(step.documents, options)
        left_ms = (step.due - time.monotonic()) * 1e3 * _SERVER_SHARE
        if left_ms < 1e-3:
            raise Miss(LATE, "nothing was sent before the deadline")
        headers = {
            **self.headers(),
            answers.ID_HEADER: step.asked.request_id,
            "x-policy-deadline-ms": f"{left_ms:.3f}",
        }
        return http11.request("POST", self.address.path, headers, body)

    def headers(self) -> dict[str, str]:
        """Who asks."""
        named = {"Host": self.address.host_header, "Content-Type": "application/json", "x-vehicle-id": self.vehicle_id}
        if self.episode_id is not None:
            named["x-episode-id"] = self.episode_id
        named.update(self._authorization)
        return named

    def read(self, step: Step, response: Response) -> Answer:
        """What may be executed; raises `Miss`."""
        answer = answers.read(response, step.asked)
        if time.monotonic() > step.due:
            raise Miss(LATE, "no whole answer before the deadline")
        return answer

    def should_try_again(self, step: Step, miss: Miss, was_used: bool) -> bool:
        """Once in a step: after a connection that had been idle too long, or a state that the version cannot use."""
        if step.was_tried_again:
            return False
        if isinstance(miss, Hangup) and was_used:
            self.counts.retries += 1
        elif miss.kind == _INVALID_STATE and step.memory.begin_anew():
            self.counts.state_losses += 1
        else:
            return False
        step.was_tried_again = True
        return True

    def accept(self, step: Step, answer: Answer) -> list[Action]:
        self.breaker.succeed()
        now = time.monotonic()
        actions = [
            Action(
                *controls,
                source=POLICY,
                version=answer.version,
                latency_s=now - step.started,
                interventions=interventions,
                seed=answer.seed,
                request_id=step.asked.request_id,
            )
            for controls, interventions in zip(answer.controls, answer.interventions)
        ]
        step.memory.keep(actions, answer.state, now)
        if step.memory in (self._vehicle, self._fleet):
            self._episode_versions.add(answer.version)
        return self._done(step, actions, None)

    def fall_back(self, step: Step, miss: Miss) -> list[Action]:
        now = time.monotonic()
        actions = []
        for row in range(step.asked.rows):
            last, age_s = step.memory.last(row, step.asked.rows, now)
            actions.append(
                replace(
                    self._chosen(last, age_s),
                    source=FALLBACK,
                    reason=miss.reason,
                    message=str(miss),
                    version="",
                    latency_s=now - step.started,
                    interventions=(),
                    seed=None,
                    request_id=step.asked.request_id,
                )
            )
        return self._done(step, actions, miss)

    def note(self, miss: Miss) -> bool:
        """What a miss says of the server; whether the circuit opened."""
        if miss.is_the_server_s:
            return self.breaker.fail()
        if miss.reason == REFUSED:
            self.breaker.succeed()
        return False

    # In the background.

    def probing(self) -> Step | None:
        """The last step anew, for a prediction that no vehicle waits for; `None` if there was none."""
        latest = self._latest
        if latest is None:
            return None
        now = time.monotonic()
        step = Step(latest.asked._replace(request_id=self._next_id()), latest.memory, now, now + self.deadline_s)
        step.documents = latest.documents
        return step

    def statistics(self, connects: int) -> Statistics:
        breaker = self.breaker
        return self.counts.snapshot(connects=connects, circuit=breaker.state, circuit_opened=breaker.opened)

    # An episode.

    def start_episode(self, episode_id: str | None) -> str:
        named = address.identifier("episode_id", episode_id or uuid.uuid4().hex)
        self._vehicle, self._fleet, self._episode_versions = Memory(), Memory(), set()
        self.episode_id = named
        return named

    def end_episode(self, total_return: float, length: int) -> Report | None:
        """What is to be reported, `None` if no version drove the episode, or more than one."""
        if not -MAX_RETURN <= finite("total_return", total_return) <= MAX_RETURN:
            raise ValueError(f"total_return: expected at most {MAX_RETURN:g}, got {total_return!r}")
        length = checking.integer("length", length, 1, MAX_LENGTH)
        versions, headers = self._episode_versions, self.headers()
        self._vehicle, self._fleet, self._episode_versions = Memory(), Memory(), set()
        self.episode_id = None
        if len(versions) != 1:
            return None
        return Report(self.address.episodes_path(versions.pop()), headers, float(total_return), length)

    def _next_id(self) -> str:
        return f"{self.vehicle_id}:{self._run}:{next(self._numbers)}"

    def _chosen(self, last: Action | None, age_s: float) -> Action:
        try:
            chosen = self._fallback.action(last, age_s)
        except Exception:  # a strategy of somebody's own: the vehicle needs an action all the same
            return FULL_BRAKE
        return chosen if isinstance(chosen, Action) else FULL_BRAKE

    def _done(self, step: Step, actions: list[Action], miss: Miss | None) -> list[Action]:
        taken_over = self.overridden(step)
        if taken_over is not None:
            return taken_over
        self.counts.step(actions, miss)
        return actions
