"""How long until the first action: `python -m benchmarks.startup --runs 5 --versions v0.1.0 v0.2.0`.

Each run starts `carla-policy serve` on free ports, and takes the time from the launch until a client that asks again
and again has its first answer, and until `serve` says that it is ready, warmed up. In between stand the steps that
`serve --json` tells itself. Printed is the median with the range; the machine and its load are part of the figure, so
compare only what was measured in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.first_answer import FirstAnswer
from benchmarks.servers import ServeProcess
from carla_policy_tools.client import golden_observations, request_body
from carla_policy_tools.paths import MODEL_STORE, archive_name, archived_versions
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.urls import prediction_url

STEPS = ("started", "verified", "loaded", "first answer", "warm", "ready")


def start_once(store: Path, versions: list[str], profile: str) -> dict[str, float]:
    """Seconds from launch to each of `STEPS`, and the number of requests of the warm-up."""
    port = choose_ports(0).inference
    observation = golden_observations(store / archive_name(versions[-1]))[0][:1]
    body = json.dumps(request_body(observation)).encode()
    with tempfile.TemporaryDirectory() as scratch:
        server = ServeProcess(
            store, *versions, "--profile", profile, "--port", str(port), registry=Path(scratch, "registry.json")
        )
        client = FirstAnswer(prediction_url(f"http://127.0.0.1:{port}", versions[-1]), body)
        client.start()
        try:
            with server:
                ready = time.perf_counter()
                client.join()
        finally:
            client.stop.set()
    times = {name: float(seconds) for name, seconds in server.ready.get("startup_s", {}).items()}
    requests = float(server.ready.get("warmup_requests", 0))
    return {
        **times,
        "first answer": client.answered - client.launched,
        "ready": ready - client.launched,
        "requests": requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--store", type=Path, default=MODEL_STORE)
    parser.add_argument("--versions", nargs="+", help="By default all in the store.")
    parser.add_argument("--profile", default="realtime")
    arguments = parser.parse_args()
    versions = arguments.versions or archived_versions(arguments.store)
    runs = [start_once(arguments.store, versions, arguments.profile) for _ in range(arguments.runs)]
    print(f"{len(versions)} versions, profile {arguments.profile}, {arguments.runs} runs, {os.cpu_count()} processors")
    for name in STEPS:
        seconds = [run[name] for run in runs if name in run]
        if seconds:
            print(f"{name:<13} {statistics.median(seconds):.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})")
    print(f"warmed up by  {statistics.median(run['requests'] for run in runs):.0f} requests")


if __name__ == "__main__":
    main()
