"""The LitServe service that the contender `litserve` runs: `python -m benchmarks.contenders.litserve_service PORT`."""

import sys
import time
from typing import Any

import litserve
import numpy as np

from benchmarks.contenders.plain import PlainPolicy


class PolicyAPI(litserve.LitAPI):  # type: ignore[misc]
    """One request at a time, as LitServe does without a batch size."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load network and scaler in the worker process."""
        self.policy = PlainPolicy()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe would take an annotation for a schema
        """Rows `[rows, columns]` of a decoded JSON body."""
        return np.array([[row["speed"], row["steering"], *row["sensors"]] for row in request["observations"]])

    def predict(self, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
        """The answer's content."""
        started = time.perf_counter()
        controls = self.policy.act(self.policy.scaler.transform(rows).astype(np.float32))
        actions = [{"throttle": throttle, "brake": brake, "steer": steer} for throttle, brake, steer in controls]
        elapsed_ms = (time.perf_counter() - started) * 1e3
        return {"actions": actions, "version": self.policy.version, "timingMs": elapsed_ms, "deterministic": True}

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """LitServe encodes it as JSON."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(PolicyAPI(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
