"""Artifacts of policies that nobody trained: any head, runtime, layout, preprocessor and size.

Golden vectors come from torch and from `export.reference`, not from the serving code.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from carla_policy.runtimes.tiling import Signature
from carla_policy_tools.artifact import write_card
from carla_policy_tools.export import reference
from carla_policy_tools.export.choices import FILE_OF_RUNTIME
from carla_policy_tools.export.serialization import write_network

ROWS = 256
HEADS = {
    "deterministic": ("action",),
    "gaussian": ("mean", "log_std"),
    "squashed_gaussian": ("mean", "log_std"),
    "beta": ("alpha", "beta"),
    "categorical": ("logits",),
    "epsilon_greedy": ("q_values",),
}
TABLE = [
    {"throttle": 0.5, "brake": 0.0, "steer": -0.25},
    {"throttle": 0.5, "brake": 0.0, "steer": 0.0},
    {"throttle": 0.5, "brake": 0.0, "steer": 0.25},
    {"throttle": 0.0, "brake": 1.0, "steer": 0.0},
]


class Network(torch.nn.Module):
    """A small actor, all of whose outputs depend on its input."""

    def __init__(self, features: int, width: int, names: Sequence[str] = ("mean", "log_std")) -> None:
        super().__init__()
        self.names = tuple(names)
        self.hidden = torch.nn.Sequential(torch.nn.Linear(features, 32), torch.nn.Tanh())
        self.outputs = torch.nn.ModuleList(torch.nn.Linear(32, width) for _ in names)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.hidden(features)
        return tuple(self.shape(name, layer(hidden)) for name, layer in zip(self.names, self.outputs, strict=True))

    def shape(self, name: str, output: torch.Tensor) -> torch.Tensor:
        """Into the range that such a parameter has."""
        if name in ("alpha", "beta"):
            return torch.nn.functional.softplus(output) + 0.5
        return output - 1.0 if name == "log_std" else output


class RecurrentNetwork(Network):
    """Remembers its last hidden layer."""

    def __init__(self, features: int, width: int, names: Sequence[str]) -> None:
        super().__init__(features, width, names)
        self.memory = torch.nn.Linear(32, 32)

    def forward(self, features: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        hidden = torch.tanh(self.hidden(features) + self.memory(state))
        outputs = tuple(self.shape(name, layer(hidden)) for name, layer in zip(self.names, self.outputs, strict=True))
        return (*outputs, hidden)


def signature_of(features: int, width: int, head: str, recurrent: bool) -> Signature:
    """What such a network takes and yields."""
    state, after = ({"state": 32}, {"next_state": 32}) if recurrent else ({}, {})
    return Signature({"features": features, **state}, {**dict.fromkeys(HEADS[head], width), **after})


def observations(rows: int, sensors: int, seed: int = 0) -> Any:
    """Observations `[rows, 2 + sensors]` float32 within the bounds of a synthetic card."""
    rng = np.random.default_rng(seed)
    columns = [rng.uniform(0, 30, rows), rng.uniform(-1, 1, rows), *rng.uniform(-50, 50, (sensors, rows))]
    return np.stack(columns, axis=1).astype(np.float32)


def make_artifact(
    root: Path,
    version: str,
    *,
    sensors: int = 5,
    head: str = "gaussian",
    runtime: str = "torchscript",
    recurrent: bool = False,
    layout: Sequence[str] = ("acceleration", "steer"),
    preprocessor: Any = None,
    input_dtype: str = "float64",
    card: dict[str, Any] | None = None,
    network: torch.nn.Module | None = None,
) -> Path:
    """Write a complete artifact to `root/version`; `card` overrides top-level keys of the model card."""
    torch.manual_seed(1)
    directory = root / version
    directory.mkdir(parents=True)
    golden_observations = observations(ROWS, sensors)
    inputs = golden_observations.astype(input_dtype)
    fitted = (preprocessor or StandardScaler()).fit(inputs)
    features = fitted.transform(inputs).astype(np.float32)
    discrete = head in ("categorical", "epsilon_greedy")
    width = len(TABLE) if discrete else len(layout)
    make = RecurrentNetwork if recurrent else Network
    module = (network or make(features.shape[1], width, HEADS[head])).eval()
    states = np.random.default_rng(2).uniform(-1, 1, (ROWS, 32)).astype(np.float32)
    low = np.array([0.0 if name in ("throttle", "brake") else -1.0 for name in layout], np.float32)
    spec = {"type": head, **({"epsilon": 0.25} if head == "epsilon_greedy" else {})}

    def bound(native: Any) -> Any:
        if discrete:
            return native
        if head in ("squashed_gaussian", "beta"):
            start, end = (0.0, 1.0) if head == "beta" else (-1.0, 1.0)
            native = (low + (native - np.float32(start)) * np.float32(1 / (end - start)) * (1 - low)).astype(np.float32)
        return np.clip(native, low, 1.0)

    inputs_of = [
        (row[None], state[None]) if recurrent else (row[None],) for row, state in zip(features, states, strict=True)
    ]
    with torch.inference_mode():
        outputs = [module(*(torch.from_numpy(part) for part in row)) for row in inputs_of]
    names = (*HEADS[head], *(["next_states"] if recurrent else []))
    recorded = {name: torch.cat([row[index] for row in outputs]).numpy() for index, name in enumerate(names)}
    seeds = np.arange(ROWS, dtype=np.uint64) * 7919 + 2**63
    rows = [{name: recorded[name][row] for name in HEADS[head]} for row in range(ROWS)]
    write_network(module, directory / FILE_OF_RUNTIME[runtime], signature_of(features.shape[1], width, head, recurrent))
    (directory / "preprocessor.pkl").write_bytes(pickle.dumps(fitted))
    np.savez(
        directory / "golden.npz",
        observations=golden_observations,
        features=features,
        **recorded,
        **({"states": states} if recurrent else {}),
        deterministic_actions=np.stack([bound(reference.mode(spec, row)) for row in rows]),
        seeds=seeds,
        sampled_actions=np.stack(
            [bound(reference.sample(spec, row, int(seed))) for row, seed in zip(rows, seeds, strict=True)]
        ),
    )
    fields = [
        {"name": "speed", "unit": "m/s", "low": 0.0, "high": 60.0},
        {"name": "steering", "unit": "1", "low": -1.0, "high": 1.0},
        *({"name": f"sensor_{n}", "unit": "m", "low": -50.0, "high": 50.0} for n in range(sensors)),
    ]
    bounding = "unscale" if head in ("squashed_gaussian", "beta") else "clip"
    continuous = {"layout": list(layout), "low": low.tolist(), "high": [1.0] * len(layout), "bounding": bounding}
    content = {
        "model_name": "carla_policy",
        "version": version,
        "description": "synthetic",
        "created": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "git_sha": "0" * 40,
        "framework_versions": {"torch": torch.__version__},
        "observation": {"fields": fields},
        "preprocessor": {"input_dtype": input_dtype},
        "head": spec,
        "action": {"table": TABLE} if discrete else continuous,
        "safety": {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}},
        **({"recurrent": {"state_size": 32}} if recurrent else {}),
        # Another runtime rounds the last digits differently, and a Beta's mode multiplies that.
        "parity": {"atol": 1e-5 if runtime == "onnx" else 1e-6},
        "performance_metrics": {"mean_return": 0.0},
    }
    write_card(directory, content | (card or {}))
    return directory
