"""The sections of a model card: what a policy observes, how its network's output becomes an action, what is safe.

Every section is typed, refuses unknown keys, and is frozen. A card written before a section existed loads as it
always did: what is new has a default that changes nothing of what the policy does.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from typing_extensions import Self

from carla_policy.rounding import outermost

Positive = Annotated[float, Field(gt=0.0)]
FullScale = Annotated[float, Field(ge=1e-6, le=1e6)]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
SignedUnit = Annotated[float, Field(ge=-1.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ObservedField(Section):
    """One column of the observation; outside of `low` to `high` a value means nothing and is refused."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_+.-]*$")]
    unit: str
    low: float
    high: float
    seen: tuple[float, float] | None = None
    """Smallest and largest value in training."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.seen and self.seen[0] > self.seen[1]:
            raise ValueError(f"seen must be the smallest and the largest value, got {list(self.seen)}")
        return self


class ObservationSpec(Section):
    """Columns of the observation: speed, steering, then the sensors in the order of the request's `sensors`."""

    fields: tuple[ObservedField, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = self.names
        if names[:2] != ("speed", "steering"):
            raise ValueError(f"the first two fields must be speed and steering, got {list(names[:2])}")
        if len(set(names)) != len(names):
            raise ValueError("every field needs a name of its own")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def columns(self) -> int:
        return len(self.fields)

    @property
    def sensors(self) -> int:
        return len(self.fields) - 2

    @cached_property
    def exact_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As `bounds`, but of numbers that are still to be rounded to float32, `[columns]` float64 each."""
        low, high = self.bounds
        return (
            np.array([outermost(value, -1.0) for value in low]),
            np.array([outermost(value, 1.0) for value in high]),
        )

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lowest and highest meaningful value of each column, `[columns]` float32 each."""
        low, high = (np.array([getattr(field, end) for field in self.fields], np.float32) for end in ("low", "high"))
        return low, high


class PreprocessorSpec(Section):
    input_dtype: Literal["float32", "float64"]
    """What training passed to the preprocessor; scikit-learn computes in the type of its input."""
    columns: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    """Which columns of the observation the policy sees, in its own order; all of them, in order, by default."""


class DeterministicSpec(Section):
    """The network yields the `action` itself, `[rows, dims]` (TD3, DDPG)."""

    type: Literal["deterministic"]


class GaussianSpec(Section):
    """The network yields `mean` and a scale of a diagonal Gaussian, each `[rows, dims]` (PPO, A2C)."""

    type: Literal["gaussian"]
    scale: Literal["log_std", "std"] = "log_std"


class SquashedGaussianSpec(Section):
    """As gaussian, and the action is the hyperbolic tangent of the Gaussian's value (SAC)."""

    type: Literal["squashed_gaussian"]
    scale: Literal["log_std", "std"] = "log_std"


class BetaSpec(Section):
    """The network yields `alpha` and `beta` of a Beta distribution over (0, 1), each `[rows, dims]` (Roach)."""

    type: Literal["beta"]


class CategoricalSpec(Section):
    """The network yields `logits` `[rows, choices]` over the rows of the action table (discrete PPO)."""

    type: Literal["categorical"]


class EpsilonGreedySpec(Section):
    """The network yields `q_values` `[rows, choices]`; the best is taken, when sampling all but always (DQN)."""

    type: Literal["epsilon_greedy"]
    epsilon: UnitInterval
    """Share of sampled actions that are drawn from all choices alike."""


HeadSpec = Annotated[
    DeterministicSpec | GaussianSpec | SquashedGaussianSpec | BetaSpec | CategoricalSpec | EpsilonGreedySpec,
    Field(discriminator="type"),
]


class Controls(Section):
    """CARLA's `VehicleControl`: positive steer turns right."""

    throttle: UnitInterval
    brake: UnitInterval
    steer: SignedUnit


LAYOUTS = (
    ("brake", "steer", "throttle"),
    ("acceleration", "steer"),
    ("steer",),
    ("acceleration",),
)


class ContinuousActionSpec(Section):
    """What each dimension of the action means, and the bounds of the action space that training used.

    `bounding` says how the head's output gets within `low` and `high`: `clip`, or `unscale` from the head's own range
    (-1 to 1; 0 to 1 for beta) as stable-baselines3 does for SAC, TD3 and `squash_output`.
    """

    layout: tuple[Literal["throttle", "brake", "acceleration", "steer"], ...]
    low: tuple[Bound, ...]
    high: tuple[Bound, ...]
    bounding: Literal["clip", "unscale"] = "clip"
    full_scale: tuple[FullScale, ...] | None = None
    """For each dimension the value that stands for full throttle, brake or lock; 1 each by default."""
    full_brake: FullScale | None = None
    """For `acceleration`: the deceleration that stands for a full brake; as its `full_scale` by default."""

    @model_validator(mode="after")
    def _drivable(self) -> Self:
        if tuple(sorted(self.layout)) not in LAYOUTS:
            raise ValueError(
                "layout must name throttle, brake and steer; or acceleration and steer; or one of the latter two "
                "where something else drives the other; each once"
            )
        lengths = {len(values) for values in (self.layout, self.low, self.high, self.full_scale or self.low)}
        if len(lengths) > 1:
            raise ValueError("layout, low, high and full_scale must have the same length")
        for name, low, high in zip(self.layout, self.low, self.high, strict=True):
            if low >= high:
                raise ValueError(f"{name}: low must be below high, got {low} and {high}")
        if self.full_brake is not None and "acceleration" not in self.layout:
            raise ValueError("full_brake goes with acceleration; here it has no meaning")
        return self


class TableActionSpec(Section):
    """The action is a row number of this table of controls."""

    table: tuple[Controls, ...] = Field(min_length=2, max_length=4096)


def _kind_of_action(value: Any) -> str:
    has_table = "table" in value if isinstance(value, dict) else hasattr(value, "table")
    return "discrete" if has_table else "continuous"


ActionSpec = Annotated[
    Annotated[ContinuousActionSpec, Tag("continuous")] | Annotated[TableActionSpec, Tag("discrete")],
    Discriminator(_kind_of_action),
]


class SteerRate(Section):
    """The steer that leaves lies within `max_change` of what the observation says that the wheels do now."""

    max_change: Annotated[float, Field(gt=0.0, le=2.0)]
    observed: str = "steering"
    full_scale: FullScale = 1.0
    """Value of the observed field at full lock to the right."""


class ThrottleRate(Section):
    """The throttle rises by at most `max_rise` above the observed one; it may always fall."""

    max_rise: Annotated[float, Field(gt=0.0, le=1.0)]
    observed: str
    full_scale: FullScale = 1.0
    """Value of the observed field at full throttle."""


class SteerLimit(Section):
    """Largest steer at a speed, linear between the given ones and constant beyond; in the unit of `speed`."""

    speeds: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(min_length=1)
    limits: tuple[UnitInterval, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _function(self) -> Self:
        if len(self.speeds) != len(self.limits):
            raise ValueError("speeds and limits must have the same length")
        if any(second <= first for first, second in zip(self.speeds, self.speeds[1:], strict=False)):
            raise ValueError(f"speeds must rise, got {list(self.speeds)}")
        return self


class SpeedCap(Section):
    """No throttle at `limit` and above, and at least `brake` from `limit + margin` on; in the unit of `speed`."""

    limit: Positive
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    brake: UnitInterval = 0.0


class CircuitBreaker(Section):
    """After `failures` unusable actions in a row a worker answers with the fallback, and tries again in a while."""

    failures: Annotated[int, Field(ge=1, le=1_000_000)]
    recovery_s: Annotated[float, Field(gt=0.0, le=3600.0)]


class SafetySpec(Section):
    fallback: Controls
    """The action that leaves when the policy yields something unusable."""
    exclusive_pedals: bool = True
    """Throttle and brake never leave together: where both are asked for, the brake stays."""
    steer_rate: SteerRate | None = None
    throttle_rate: ThrottleRate | None = None
    steer_limit: SteerLimit | None = None
    speed_cap: SpeedCap | None = None
    circuit_breaker: CircuitBreaker | None = None

    @model_validator(mode="after")
    def _stops(self) -> Self:
        if self.fallback.throttle > 0.0:
            raise ValueError("fallback: an action for when the policy fails must not accelerate; set throttle to 0")
        return self


class OodSpec(Section):
    """When an observation is out of the training distribution, and what follows; the statistics are in `ood.npz`.

    It is when a column leaves the range `seen` in training by more than `range_margin` of that range's width, or
    when the Mahalanobis distance of its features exceeds `threshold`.
    """

    action: Literal["flag", "reject", "fallback"] = "flag"
    threshold: Positive
    range_margin: Annotated[float, Field(ge=0.0)] = 0.0
    false_positive_rate: UnitInterval
    """Share of held-out training observations that were flagged when only the others had been learned from."""
    held_out_rows: Annotated[int, Field(ge=1)]


class RecurrentSpec(Section):
    """The network takes and yields a state of `state_size` float32 numbers for each row; an episode starts at zeros."""

    state_size: Annotated[int, Field(ge=1, le=65_536)]


class ProvenanceSpec(Section):
    """The registered model of MLflow that a version was exported from."""

    mlflow: Annotated[str, StringConstraints(min_length=1)]
    """Where MLflow is, without credentials."""
    model: Annotated[str, StringConstraints(min_length=1)]
    version: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*$")]
    run_id: str | None = None
    files: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of the names and contents of its files."""


class ParitySpec(Section):
    atol: Annotated[float, Field(ge=0.0, le=1e-3)] = 1e-6
    """Largest difference from the training side's numbers at which the version may still go live.

    Of numbers beyond 1 it is a share: float32 has seven digits.
    """


class InferenceSpec(Section):
    tile: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rows of one forward pass, always exactly as many: the reason why batch mates never change a row's bits."""
    max_observations: Annotated[int, Field(ge=1, le=65_536)] = 8192
    """Most observations in one request."""
    deadline_ms: Annotated[float, Field(gt=0.0, le=60_000.0)] | None = None
    """An answer that takes longer is of no use. Clients may ask for less; without this, only their deadlines count."""
    late: Literal["fallback", "reject"] = "fallback"
    """What is answered at the deadline: the safe action, or the error DEADLINE_EXCEEDED."""
