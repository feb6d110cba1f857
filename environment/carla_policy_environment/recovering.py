"""One environment of a vector: its steps, and what becomes of it when its service fails and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode

from carla_policy_environment.carla_env import CarlaEnv
from carla_policy_environment.errors import RequestRefused, ServiceError
from carla_policy_environment.vector_infos import FINAL_INFO, FINAL_OBSERVATION

FAILURE = "service_failure"
"""In the info of an environment whose service failed: why, as text."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True)
class Outcome:
    """What a step of one environment gave, beside its observation."""

    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class Recovery:
    """Resets `env` in a thread of its own, again and again with growing pauses, until that succeeds."""

    def __init__(self, env: CarlaEnv, cause: ServiceError) -> None:
        self.cause = cause
        self.began = time.monotonic()
        self.result: tuple[Any, dict[str, Any]] | None = None
        self.done = threading.Event()
        self._env = env
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Give up; returns when nothing is asked of the service any more."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._cancelled.wait(pause):
            try:
                # A frozen service is noticed by this sooner than by a reset, which may take long where all is well.
                self._env.health()
                self.result = self._env.reset()
            except ServiceError as error:
                self.cause = error
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self.done.set()
                return


class Member:
    """`env` within a vector. A failure of its service ends its episode; `patience_s` is how long it may be away."""

    def __init__(self, env: CarlaEnv, patience_s: float) -> None:
        self.env = env
        self.observation: Any = None
        """The last one that there was."""
        self.recovery: Recovery | None = None
        self._patience_s = patience_s
        self._over = True

    def check(self, action: Any, index: int, mode: AutoresetMode) -> None:
        """Raise what speaks against a step with `action`, before any environment of the vector has taken one."""
        if self.observation is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step")
        if mode is AutoresetMode.DISABLED and self._over:
            raise gymnasium.error.ResetNeeded(
                f"environment {index}: its episode is over; without autoreset, reset it by options['reset_mask']"
            )
        if self.recovery and self.overdue(self.recovery):
            raise self.recovery.cause
        if not self._over:
            try:
                self.env.encode_action(action)
            except ValueError as error:
                raise ValueError(f"environment {index}: {error}") from None

    def overdue(self, recovery: Recovery) -> bool:
        """Whether its service has been away for too long."""
        return not recovery.done.is_set() and time.monotonic() - recovery.began > self._patience_s

    def reset(self, seed: int | None, options: dict[str, Any]) -> Outcome:
        """Begin an episode, once its service is well again; raises its failure where that takes too long."""
        if self.recovery:
            self.recovery.cancel()
            self.recovery = None
        try:
            self.observation, info = self.env.reset(seed=seed, options=options)
        except RequestRefused:
            raise
        except ServiceError as error:
            self._wait_for(Recovery(self.env, error))
            self.observation, info = self.env.reset(seed=seed, options=options)
        self._over = False
        return Outcome(info=info)

    def step(self, action: Any, mode: AutoresetMode) -> Outcome:
        """Take `action`, or begin an episode where the last one is over; a failure truncates the episode."""
        if self.recovery:
            return self._recovered(self.recovery)
        try:
            if self._over:
                self.observation, info = self.env.reset()
                self._over = False
                return Outcome(info=info)
            self.observation, reward, terminated, truncated, info = self.env.step(action)
            outcome = Outcome(reward, terminated, truncated, info)
        except RequestRefused:
            raise
        except ServiceError as error:
            outcome = Outcome(truncated=True, info={FAILURE: str(error)})
            if mode is not AutoresetMode.DISABLED:
                self.recovery = Recovery(self.env, error)
        self._over = outcome.terminated or outcome.truncated
        if self._over and mode is AutoresetMode.SAME_STEP:
            return self._begin_another(outcome)
        return outcome

    def close(self) -> None:
        if self.recovery:
            self.recovery.cancel()
        self.env.close()

    def _recovered(self, recovery: Recovery) -> Outcome:
        if not recovery.done.is_set():
            return Outcome(truncated=True, info={FAILURE: str(recovery.cause)})
        assert recovery.result is not None
        self.observation, info = recovery.result
        self.recovery, self._over = None, False
        return Outcome(info=info)

    def _begin_another(self, last: Outcome) -> Outcome:
        final = {FINAL_OBSERVATION: self.observation, FINAL_INFO: last.info}
        if self.recovery:
            self._wait_for(self.recovery)
            first = self._recovered(self.recovery)
        else:
            first = self.reset(None, {})
        return Outcome(last.reward, last.terminated, last.truncated, {**first.info, **final})

    def _wait_for(self, recovery: Recovery) -> None:
        if not recovery.done.wait(self._patience_s):
            recovery.cancel()
            raise recovery.cause


def wait_for_any(members: Sequence[Member]) -> None:
    """Where no service is there at all, wait until one is or has been away for too long: nothing else could go on."""
    while True:
        recoveries = [(member, member.recovery) for member in members]
        waiting = [(member, recovery) for member, recovery in recoveries if recovery is not None]
        if len(waiting) < len(members) or any(
            recovery.done.is_set() or member.overdue(recovery) for member, recovery in waiting
        ):
            return
        waiting[0][1].done.wait(FIRST_PAUSE_S)
