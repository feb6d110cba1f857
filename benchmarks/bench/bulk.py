"""One request of many rows: over HTTP as JSON and as `.npy`, and the bare model in this process without a server."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.bench.arena import Arena
from benchmarks.bench.client import JSON_TYPE, Client, no_collection
from benchmarks.bench.correctness import TOLERANCE, WrongAnswer
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Bulk
from benchmarks.bench.usage import peak_mib, reset_peak
from benchmarks.contenders.workload import Workload, load_workload
from carla_policy.actions import CONTROLS
from carla_policy.golden import FloatArray
from carla_policy.loading import LoadedPolicy
from carla_policy.media import NPY_MEDIA_TYPE
from carla_policy.runtimes.torch import TorchRuntime
from carla_policy_tools.client import request_body

JSON_SUBJECTS = {"ours-json": "ours-realtime", "fastapi-json": "fastapi-2", "handwritten-json": "handwritten"}
NPY_SUBJECTS = {"ours-npy": "ours-realtime"}
NPY_TYPE = {"Content-Type": NPY_MEDIA_TYPE}


@dataclass(frozen=True)
class Subject:
    """Something that turns rows into actions; `workers` are the processes that compute, none for this one."""

    act: Callable[[], Any]
    controls: Callable[[Any], FloatArray] | None
    """Throttle, brake, steer `[rows, 3]` of what `act` gave; `None` for a part of the model that gives none."""
    workers: list[psutil.Process]


def run_bulk(plan: Plan, arena: Arena, workload: Workload, on_step: Callable[[str], None]) -> list[Bulk]:
    """Rounds over all subjects and numbers of rows; `WrongAnswer` where an action is not the policy's."""
    loaded = load_workload(workload)
    torch.set_num_threads(1)
    found = []
    for rows in plan.bulk_rows:
        observations = np.resize(workload.observations, (rows, workload.observations.shape[1]))
        expected = loaded.policy.act(observations).controls
        with ExitStack() as stack:
            subjects = {**_served(arena, observations, stack), **_bare(loaded, observations)}
            for name, subject in subjects.items():
                if subject.controls is not None:
                    _check(name, subject.controls(subject.act()), expected)
            for number, order in plan.shuffled(list(subjects), plan.bulk_rounds):
                for name in order:
                    on_step(f"{rows:,} rows, round {number + 1} of {plan.bulk_rounds}: {name}")
                    found.append(_measure(name, subjects[name], rows, number, plan.bulk_repeats))
    return found


def _measure(name: str, subject: Subject, rows: int, number: int, repeats: int) -> Bulk:
    for worker in subject.workers:
        reset_peak(worker)
    seconds = []
    with no_collection():
        for _ in range(repeats):
            started = time.perf_counter()
            subject.act()
            seconds.append(time.perf_counter() - started)
    peak = max(map(peak_mib, subject.workers)) if subject.workers else None
    return Bulk(subject=name, rows=rows, round=number, seconds=statistics.median(seconds), peak_mib=peak)


def _served(arena: Arena, observations: FloatArray, stack: ExitStack) -> Mapping[str, Subject]:
    text = json.dumps(request_body(observations)).encode()
    buffer = io.BytesIO()
    np.save(buffer, observations.astype(np.float32))
    kinds = (
        *((name, server, text, JSON_TYPE, _controls_of_json) for name, server in JSON_SUBJECTS.items()),
        *((name, server, buffer.getvalue(), NPY_TYPE, _controls_of_npy) for name, server in NPY_SUBJECTS.items()),
    )
    subjects = {}
    for name, server, body, headers, read in kinds:
        if server in arena.contenders:
            contender = arena.contenders[server]
            client = stack.enter_context(Client(contender.url))
            processes = contender.processes()
            workers = processes.get("worker") or processes.get("server") or []
            subjects[name] = Subject(partial(_ask, name, client, client.request(body, headers)), read, workers)
    return subjects


def _ask(name: str, client: Client, request: bytes) -> bytes:
    answer = client.send(request)
    if answer.status != 200:
        raise WrongAnswer(f"{name}: status {answer.status}: {answer.body[:200]!r}")
    return answer.body


def _bare(loaded: LoadedPolicy, observations: FloatArray) -> Mapping[str, Subject]:
    """Preprocessor and network as our worker runs them; the network alone; both in one pass over all rows."""
    policy = loaded.policy
    features = policy.preprocessor(observations)
    subjects = {
        "bare": Subject(lambda: policy.runtime(policy.preprocessor(observations)), None, []),
        "bare-network": Subject(lambda: policy.runtime(features), None, []),
    }
    if isinstance(policy.runtime, TorchRuntime):
        untiled = TorchRuntime(policy.runtime.module, policy.runtime.signature, len(observations), torch.device("cpu"))
        subjects["bare-one-pass"] = Subject(lambda: untiled(policy.preprocessor(observations)), None, [])
    return subjects


def _controls_of_json(body: bytes) -> FloatArray:
    return np.array([[action[name] for name in CONTROLS] for action in json.loads(body)["actions"]], np.float32)


def _controls_of_npy(body: bytes) -> FloatArray:
    controls: FloatArray = np.load(io.BytesIO(body), allow_pickle=False)
    return controls


def _check(name: str, controls: FloatArray, expected: FloatArray) -> None:
    if controls.shape != expected.shape or not np.allclose(controls, expected, rtol=0, atol=TOLERANCE):
        raise WrongAnswer(f"{name}: other actions than the policy's for {len(expected)} rows")
