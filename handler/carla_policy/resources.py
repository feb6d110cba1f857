"""The sub-resources of a version: what answers beside predictions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from carla_policy.actions import CONTROLS
from carla_policy.breaker import CircuitBreaker
from carla_policy.deadline import Watch
from carla_policy.errors import InternalFailure
from carla_policy.loading import LoadedPolicy
from carla_policy.openapi import document

Resource = Callable[[], Mapping[str, Any]]
"""What answers a sub-resource."""

NAMES = ("healthz", "metadata", "warmup", "openapi.json")

WARM_VECTORS = 16
"""As many as the tile and the just-in-time compiler need to be warm, few enough not to be felt by batch mates."""


class Resources:
    """`healthz`, `metadata`, `warmup` and `openapi.json` of one loaded policy."""

    def __init__(self, loaded: LoadedPolicy, breaker: CircuitBreaker, watch: Watch) -> None:
        self.loaded = loaded
        self._watch = watch
        self._breaker = breaker
        self._policy = loaded.policy
        self._card = loaded.policy.card
        answering = (self.health, self.metadata, self.warm_up, lambda: document(self._card))
        self.by_name: dict[str, Resource] = dict(zip(NAMES, answering, strict=True))

    def health(self) -> Mapping[str, Any]:
        """Replays one golden vector: `ok` means that this worker answers it now, as training did."""
        if self._watch.hangs:
            raise InternalFailure("healthz: the network has not come back from an earlier request")
        policy, golden = self._policy, self.loaded.golden
        state = None if golden.states is None else golden.states[:1]
        evaluation = policy.evaluate(golden.observations[:1], policy.preprocessor(golden.observations[:1]), state)
        got = policy.select(evaluation.parameters, deterministic=True, seed=0)
        difference = np.abs(got.astype(np.float64) - golden.deterministic_actions[:1])
        if not (difference <= self._card.parity.atol).all():
            raise InternalFailure("healthz: the first golden vector is not reproduced any more; restart this worker")
        return {
            "status": "ok",
            "version": self._card.version,
            "gitSha": self._card.git_sha,
            "circuit": self._breaker.state,
        }

    def metadata(self) -> Mapping[str, Any]:
        """What is served: the card, and what this worker made of it."""
        card, policy = self._card, self._policy
        return {
            "name": card.model_name,
            "version": card.version,
            "gitSha": card.git_sha,
            "device": policy.runtime.device,
            "workerPid": os.getpid(),
            "inputShape": [card.observation.columns],
            "actionSpace": {
                "layout": list(CONTROLS),
                "low": [0.0, 0.0, -1.0],
                "high": [1.0, 1.0, 1.0],
                "policy": card.action.model_dump(mode="json", exclude_none=True),
            },
            "head": card.head.model_dump(mode="json", exclude_none=True),
            "safety": card.safety.model_dump(mode="json", exclude_none=True),
            "ood": card.ood.model_dump(mode="json") if card.ood else {"action": "off"},
            "recurrent": card.recurrent is not None,
            "runtime": card.model_file,
            "preprocessor": policy.preprocessor.form,
            "selfTest": {
                "vectors": len(self.loaded.golden),
                "stages": [
                    {
                        "stage": parity.stage,
                        "bitEqualShare": parity.bit_equal_share,
                        "maxAbsDifference": parity.max_abs_difference,
                        "maxUlp": parity.max_ulp,
                    }
                    for parity in self.loaded.parity
                ],
            },
            "card": card.model_dump(mode="json", exclude_none=True),
        }

    def warm_up(self) -> Mapping[str, Any]:
        """Act on golden observations, so that nothing is done for the first time by a client's request.

        A worker has replayed all golden vectors before it is ready; this is for one that has been idle since.
        """
        started = time.perf_counter()
        observations = self.loaded.golden.observations[:WARM_VECTORS]
        for deterministic in (True, False):
            self._policy.act(observations, deterministic=deterministic)
        return {
            "status": "warm",
            "version": self._card.version,
            "vectors": len(observations),
            "timingMs": round((time.perf_counter() - started) * 1e3, 4),
        }
