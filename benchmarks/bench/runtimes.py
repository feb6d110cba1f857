"""Rows a second of the network alone: by runtime, by tile, by the number of rows, in this process on one thread."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench.client import no_collection
from benchmarks.bench.results import RuntimeSpeed
from benchmarks.contenders.workload import Workload, load_workload
from carla_policy.loading import signature_of
from carla_policy.runtimes import load_runtime
from carla_policy.runtimes.tiling import Runtime, Signature
from carla_policy_tools.export.errors import ExportError
from carla_policy_tools.export.serialization import write_network

FILES = {"TorchScript": "model.pt", "torch.export": "model.pt2", "ONNX": "model.onnx"}
ROWS = (1, 4, 16, 64, 256, 1024)
TILES = (1, 16, 64)
MEASURING_S = 0.05
REPEATS = 3


class MultilayerPerceptron(torch.nn.Module):
    """The layers of a shipped policy's TorchScript, as Python modules that torch can export in other formats."""

    def __init__(self, scripted: Any) -> None:
        super().__init__()
        self.hidden = torch.nn.Sequential(*(_layer(part) for _, part in scripted.hidden.named_children()))
        self.mean = _layer(scripted.mean)
        self.spread = torch.nn.Parameter(scripted.log_std.detach().clone())  # outputs have the name log_std

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log standard deviation `[rows, dims]`."""
        mean = self.mean(self.hidden(features))
        return mean, self.spread.expand_as(mean)


def run_runtimes(workload: Workload, on_step: Callable[[str], None]) -> list[RuntimeSpeed]:
    """All runtimes that the network can be had for; TorchScript alone where it is not of the shipped kind."""
    torch.set_num_threads(1)
    features = load_workload(workload).golden.features
    signature = signature_of(workload.card, features.shape[1])
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-runtimes-") as scratch:
        for name, path in _written(workload, signature, Path(scratch), features).items():
            for rows in ROWS:
                on_step(f"{name}, {rows} rows")
                batch = features[[index % len(features) for index in range(rows)]]
                for tile in sorted({tile for tile in (*TILES, rows) if tile <= rows}):
                    runtime = load_runtime(path, signature, tile)
                    found.append(RuntimeSpeed(runtime=name, tile=tile, rows=rows, seconds=_seconds(runtime, batch)))
    return found


def _written(workload: Workload, signature: Signature, directory: Path, features: Any) -> dict[str, Path]:
    own = workload.artifact / workload.card.model_file
    if own.name != FILES["TorchScript"]:
        return {own.name: own}
    paths = {"TorchScript": own}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", DeprecationWarning)
            scripted = torch.jit.load(str(own))  # type: ignore[no-untyped-call]
            network = MultilayerPerceptron(scripted)
            inputs = torch.from_numpy(features[:16])
            if not torch.allclose(network(inputs)[0], scripted(inputs)[0], atol=1e-6):
                return paths
    except (AttributeError, KeyError):
        return paths
    for name in ("torch.export", "ONNX"):
        path = directory / FILES[name]
        try:
            write_network(network, path, signature)
        except ExportError:
            continue
        paths[name] = path
    return paths


def _seconds(runtime: Runtime, batch: Any) -> float:
    runtime(batch)
    started = time.perf_counter()
    runtime(batch)
    calls = max(1, min(2000, int(MEASURING_S / (time.perf_counter() - started))))
    means = []
    with no_collection():
        for _ in range(REPEATS):
            started = time.perf_counter()
            for _ in range(calls):
                runtime(batch)
            means.append((time.perf_counter() - started) / calls)
    return statistics.median(means)


def _layer(scripted: Any) -> torch.nn.Module:
    if scripted.original_name != "Linear":
        activation: torch.nn.Module = {"Tanh": torch.nn.Tanh, "ReLU": torch.nn.ReLU}[scripted.original_name]()
        return activation
    rows, columns = scripted.weight.shape
    layer = torch.nn.Linear(columns, rows)
    layer.load_state_dict(dict(scripted.state_dict()))
    return layer
