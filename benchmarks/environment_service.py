"""What serving an environment costs: steps a second over HTTP beside in process, and what snapshots take.

`python -m benchmarks.environment_service` prints it for highway-env's racetrack; `--env` names another environment.
Rounds in process and over HTTP take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from carla_policy_environment.service.command import DEFAULT_ENVIRONMENT
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.simulators.making import make_environment
from carla_policy_environment.spaces import value_to_json

WANTED_STEPS_PER_S = 60


class Client:
    """Requests over one connection that stays open."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """The answer to a POST; `RuntimeError` with what the service says if it refuses."""
        self._connection.request("POST", path, json.dumps(content).encode(), {"content-type": "application/json"})
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {said.decode()}")
        return dict(json.loads(said))

    def close(self) -> None:
        self._connection.close()


@contextmanager
def served(environment: str) -> Iterator[Client]:
    """A client of a service of `environment`, in a process of its own."""
    command = [sys.executable, "-m", "carla_policy_environment.service", "--env", environment, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            client = Client(json.loads(process.stdout.readline())["url"])
            yield client
            client.close()
        finally:
            process.terminate()


def steps_per_s(reset: Callable[[], object], step: Callable[[], bool], steps: int) -> float:
    """How many steps a second `step` does, which says whether the episode is over; resets do not count."""
    taken_s = 0.0
    reset()
    for _ in range(steps):
        start = time.perf_counter()
        over = step()
        taken_s += time.perf_counter() - start
        if over:
            reset()
    return steps / taken_s


def measure(environment: str, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over all rounds."""
    simulator = GymnasiumSimulator(lambda: make_environment(environment), environment)
    simulator.action_space.seed(0)
    actions = [simulator.action_space.sample() for _ in range(16)]
    sent = [value_to_json(simulator.action_space, action) for action in actions]
    seeds = iter(range(10**9))

    def step_in_process() -> bool:
        _, _, terminated, truncated, _ = simulator.step(actions[next(seeds) % 16])
        return terminated or truncated

    with served(environment) as client:

        def step_over_http() -> bool:
            answer = client.post("/step", {"action": sent[next(seeds) % 16]})
            return bool(answer["terminated"] or answer["truncated"])

        in_process, over_http = [], []
        for seed in range(rounds):
            in_process.append(steps_per_s(lambda: simulator.reset(seed, {}), step_in_process, steps))  # noqa: B023
            over_http.append(steps_per_s(lambda: client.post("/reset", {"seed": seed}), step_over_http, steps))  # noqa: B023
        figures = {
            "environment": environment,
            "steps_per_s_in_process": round(median(in_process), 1),
            "steps_per_s_over_http": round(median(over_http), 1),
            "http_share_of_in_process": round(median(over_http) / median(in_process), 3),
            "at_least_60_steps_per_s": median(over_http) >= WANTED_STEPS_PER_S,
        }
        return figures | _snapshots(client, simulator, rounds)


def _snapshots(client: Client, simulator: GymnasiumSimulator, rounds: int) -> dict[str, Any]:
    if simulator.no_snapshots:
        return {"snapshots": simulator.no_snapshots}
    client.post("/reset", {"seed": 0})
    taken = [client.post("/snapshot/create", {}) for _ in range(min(rounds, 60))]
    restored, requests_ms = [], []
    for snapshot in taken:
        start = time.perf_counter()
        restored.append(client.post("/snapshot/restore", {"snapshot_id": snapshot["snapshot_id"]})["ms"])
        requests_ms.append((time.perf_counter() - start) * 1000)
    return {
        "snapshot_ms": median(snapshot["ms"] for snapshot in taken),
        "restore_ms": median(restored),
        "slowest_restore_ms": max(restored),
        "restore_request_ms": round(median(requests_ms), 3),
    }


def print_measured(
    name: str, description: str | None, take: Callable[[str, int, int], dict[str, Any]], *, rounds: int
) -> None:
    """The command `python -m benchmarks.<name>`: print what `take` measures as one JSON object."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--env", default=DEFAULT_ENVIRONMENT, help="module:callable, file.py:callable, or an id")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each kind")
    parser.add_argument("--steps", type=int, default=100, help="steps of a round")
    options = parser.parse_args()
    print(json.dumps(take(options.env, options.rounds, options.steps), indent=2))


if __name__ == "__main__":
    print_measured("environment_service", __doc__, measure, rounds=20)
