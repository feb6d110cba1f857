"""How long until the first action: `python -m benchmarks.startup --runs 5`.

Each run starts `carla-policy serve` on free ports with every archive in the model store, and takes the time from
launch to ready (every worker of every version has passed its self-test) and to the first answer. Printed is the
median with the range; the machine and its load are part of the figure, so compare runs made side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.servers import ServeProcess
from carla_policy_tools.client import golden_observations, predict, request_body
from carla_policy_tools.paths import MODEL_STORE, archive_name


def start_once(store: Path, profile: str) -> tuple[float, float, int]:
    """Seconds from launch to ready and to the first answer, and how many versions were served."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        with ServeProcess(store, "--profile", profile, registry=Path(scratch, "registry.json")) as server:
            ready_s = time.perf_counter() - started
            observation = golden_observations(store / archive_name(server.ready["promoted"]))[0][:1]
            predict(server.base, None, json.dumps(request_body(observation)).encode())
            return ready_s, time.perf_counter() - started, len(server.ready["versions"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--store", type=Path, default=MODEL_STORE)
    parser.add_argument("--profile", default="realtime")
    arguments = parser.parse_args()
    runs = [start_once(arguments.store, arguments.profile) for _ in range(arguments.runs)]
    print(f"{runs[0][2]} versions, profile {arguments.profile}, {arguments.runs} runs")
    for name, seconds in (("ready", [run[0] for run in runs]), ("first answer", [run[1] for run in runs])):
        print(f"launch to {name:<13} {statistics.median(seconds):.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
