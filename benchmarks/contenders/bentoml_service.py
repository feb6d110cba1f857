"""The BentoML service that the contender `bentoml` runs: one worker, no batches, the same arithmetic as FastAPI's."""

import time
from typing import Any

import bentoml
import numpy as np

from benchmarks.contenders.plain import PlainPolicy


@bentoml.service(workers=1, metrics={"enabled": False})  # type: ignore[untyped-decorator, unused-ignore]
class PolicyService:
    """BentoML takes the route's schema from the annotations, at run time."""

    def __init__(self) -> None:
        self.policy = PlainPolicy()

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator, unused-ignore]
    def predict(self, observations: list[dict[str, Any]], deterministic: bool = True) -> dict[str, Any]:
        """Actions of all observations in one pass."""
        started = time.perf_counter()
        rows = np.array([[row["speed"], row["steering"], *row["sensors"]] for row in observations])
        controls = self.policy.act(self.policy.scaler.transform(rows).astype(np.float32))
        actions = [{"throttle": throttle, "brake": brake, "steer": steer} for throttle, brake, steer in controls]
        elapsed_ms = (time.perf_counter() - started) * 1e3
        return {
            "actions": actions,
            "version": self.policy.version,
            "timingMs": elapsed_ms,
            "deterministic": deterministic,
        }
