"""The wire's messages: what a request, an answer and an error consist of.

A request is `{"observations": [{"speed", "steering", "sensors"}], "deterministic", "seed"}`; an answer is
`{"actions": [{"throttle", "brake", "steer"}], "version", "timingMs", "deterministic"}`, with `seed` when stochastic,
`interventions` when the safety envelope changed something, `ood` for observations unlike training, `log_probs` when
asked for, and the `state` of a recurrent policy, which the next request brings back.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, FailFast, Field, with_config
from typing_extensions import NotRequired, TypedDict

from carla_policy.errors import ErrorDetail
from carla_policy.heads import SEED_BITS

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@with_config(_STRICT)
class Observation(TypedDict):
    """What the vehicle senses, in the units of the version's model card.

    Numbers are rounded to float32, and then held against the bounds.
    """

    speed: float
    steering: float
    sensors: Annotated[list[float], FailFast()]


@with_config(_STRICT)
class PredictRequest(TypedDict):
    """Body of a prediction."""

    observations: Annotated[list[Observation], FailFast()]
    deterministic: NotRequired[bool]
    """The distribution's mode (true, the default) or a sample (false)."""
    seed: NotRequired[Annotated[int, Field(ge=0, lt=2**SEED_BITS)]]
    """Seed of a stochastic answer; one is drawn and echoed where none is given."""
    log_prob: NotRequired[bool]
    """Whether the answer says how likely each of its actions was."""
    state: NotRequired[str]
    """To a recurrent policy: the state that came with the last answer."""
    episode_start: NotRequired[bool | list[bool]]
    """To a recurrent policy: whose state is to be forgotten, all observations' (true) or each by itself."""


class Action(TypedDict):
    """CARLA's `VehicleControl`: throttle and brake in [0, 1], steer in [-1, 1], positive to the right."""

    throttle: Annotated[float, Field(ge=0.0, le=1.0)]
    brake: Annotated[float, Field(ge=0.0, le=1.0)]
    steer: Annotated[float, Field(ge=-1.0, le=1.0)]


class InterventionNote(TypedDict):
    """The action of observation number `observation` is not the policy's own: `kind` says what was done."""

    observation: int
    kind: str


class OodNote(TypedDict):
    """Observation number `observation` is unlike training: `outside` names its unusual fields, if it is single ones."""

    observation: int
    outside: list[str]
    distance: float | None
    """Mahalanobis distance of its features from training; null if infinite."""
    threshold: float


class PredictAnswer(TypedDict):
    """Answer to a prediction: one action for each observation, in order."""

    actions: list[Action]
    version: str
    timingMs: float
    deterministic: bool
    seed: NotRequired[int]
    interventions: NotRequired[list[InterventionNote]]
    ood: NotRequired[list[OodNote]]
    log_probs: NotRequired[list[float | None]]
    state: NotRequired[str]


EpisodeReport = TypedDict(
    "EpisodeReport",
    {"return": Annotated[float, Field(ge=-1e9, le=1e9)], "length": Annotated[int, Field(ge=1, le=1_000_000_000)]},
)
"""An episode that has ended: the sum of its rewards, undiscounted, and its steps."""
EpisodeReport.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


class ErrorAnswer(TypedDict):
    """Body of every answer with a status of 400 or more that the handler gives."""

    code: int
    type: str
    message: str
    details: list[ErrorDetail]
    requestId: str
