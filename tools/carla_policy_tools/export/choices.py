"""What a user decides about an export; light enough for a `--help`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_OF_RUNTIME = {"torchscript": "model.pt", "onnx": "model.onnx", "pt2": "model.pt2"}
ROLLOUT_STEPS, ROLLOUT_EPISODES = 2_000, 10
"""Observations and episodes to collect at least, unless the user wants more or less."""


@dataclass(frozen=True)
class Choices:
    """What a user decides beside the source; `overlay` holds keys of the card that take precedence."""

    version: str
    artifacts: Path
    runtime: str | None = None
    layout: Sequence[str] = ()
    table: Sequence[Mapping[str, float]] = ()
    speed_column: int | None = 0
    steering_column: int | None = 1
    columns_known: bool = False
    """Whether the user said which columns speed and steering are."""
    steps: int = ROLLOUT_STEPS
    episodes: int = ROLLOUT_EPISODES
    ood: bool = True
    overlay: Mapping[str, Any] = field(default_factory=dict)
