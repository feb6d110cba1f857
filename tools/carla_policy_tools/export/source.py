"""`Source`: a trained policy as its own framework runs it, one observation at a time.

Everything that an artifact's golden vectors hold is asked of a source, and none of it comes from the serving code:
a mistake in the export or in the service then shows as a difference, and cannot hide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from carla_policy.golden import FloatArray
from carla_policy.heads import make_head
from carla_policy.runtimes.tiling import NEXT_STATE, Signature
from carla_policy.specs import HeadSpec


@dataclass(frozen=True)
class ActionSpace:
    """Bounds of a continuous action, `[dims]` each, or the number of `choices` of a discrete one."""

    low: FloatArray
    high: FloatArray
    choices: int = 0
    bounding: str = "clip"


@dataclass(frozen=True)
class Prediction:
    """The framework's deterministic action `[dims]` for an observation, and the state after it."""

    action: FloatArray
    next_state: FloatArray | None = None


@dataclass(frozen=True)
class Source(ABC):
    """`description` and `versions` go into the card; `network` maps features (and state) to the head's parameters.

    `low` and `high` `[columns]` bound the policy's observation, infinite where nothing is known. `transformer` is the
    preprocessor that becomes `preprocessor.pkl`.
    """

    description: str
    versions: Mapping[str, str]
    head: Mapping[str, Any]
    action: ActionSpace
    low: FloatArray
    high: FloatArray
    transformer: Any
    input_dtype: str
    network: torch.nn.Module | Path
    state_size: int = 0
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        return len(self.low)

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """What the network yields, in this order, as the head names it."""
        return make_head(TypeAdapter(HeadSpec).validate_python(dict(self.head))).parameter_names

    def signature(self, golden: Mapping[str, NDArray[Any]]) -> Signature:
        """What the network takes and yields, by the arrays of its golden vectors."""
        state = {"state": self.state_size} if self.state_size else {}
        after = {NEXT_STATE: self.state_size} if self.state_size else {}
        outputs = {name: golden[name].shape[1] for name in self.parameter_names}
        return Signature({"features": golden["features"].shape[1], **state}, {**outputs, **after})

    def check_observations(self, observations: FloatArray) -> None:  # noqa: B027 - most sources know nothing to check
        """`ExportError` where raw `observations` `[rows, columns]` show that this cannot be how training saw them."""

    @abstractmethod
    def features(self, observations: FloatArray) -> FloatArray:
        """What the network sees of `observations` `[rows, columns]`: `[rows, features]`, normalised as in training."""

    @abstractmethod
    def parameters(self, features: FloatArray, state: FloatArray | None) -> dict[str, FloatArray]:
        """The framework's own distribution for one row of features `[features]`: each parameter `[width]`."""

    @abstractmethod
    def predict(self, observation: FloatArray, state: FloatArray | None) -> Prediction:
        """The framework's own deterministic inference on one raw observation `[columns]`."""

    @abstractmethod
    def explore(self, observation: FloatArray, state: FloatArray | None) -> FloatArray:
        """The framework's own sampled action `[dims]`, to visit more than the deterministic episodes do."""

    @abstractmethod
    def bound(self, native: FloatArray) -> FloatArray:
        """The framework's own way from a draw of the distribution `[dims]` to an action within its space."""

    def initial_state(self) -> FloatArray | None:
        """Zeros `[state_size]` for a recurrent policy."""
        return np.zeros(self.state_size, np.float32) if self.state_size else None
