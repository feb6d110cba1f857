"""`model_card.yaml`: what a version says of itself, typed; unknown keys are refused.

The card declares the observation's layout, the preprocessor's input type, the action head and layout, the safe
action, the parity tolerance and tile, and the SHA-256 of every other file of the artifact. Its own last line is the
digest of everything before it, so that a changed card is noticed as well.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from carla_policy.digests import sha256
from carla_policy.errors import ArtifactError
from carla_policy.version import check_version

CARD_FILE = "model_card.yaml"
MODEL_FILE = "model.pt"
PREPROCESSOR_FILE = "preprocessor.pkl"
GOLDEN_FILE = "golden.npz"
ARTIFACT_FILES = frozenset({MODEL_FILE, PREPROCESSOR_FILE, GOLDEN_FILE})
"""What an artifact consists of beside its card."""

CARD_HASH_KEY = "card_hash"
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Version = Annotated[str, AfterValidator(check_version)]
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
SignedUnit = Annotated[float, Field(ge=-1.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ObservedField(_Section):
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
        return self


class ObservationSpec(_Section):
    """Columns of the observation: speed, steering, then the sensors in the order of the request's `sensors`."""

    fields: tuple[ObservedField, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = [field.name for field in self.fields]
        if names[:2] != ["speed", "steering"]:
            raise ValueError(f"the first two fields must be speed and steering, got {names[:2]}")
        if len(set(names)) != len(names):
            raise ValueError("every field needs a name of its own")
        return self

    @property
    def columns(self) -> int:
        return len(self.fields)

    @property
    def sensors(self) -> int:
        return len(self.fields) - 2

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Lowest and highest meaningful value of each column, `[columns]` float32 each."""
        low, high = (np.array([getattr(field, end) for field in self.fields], np.float32) for end in ("low", "high"))
        return low, high


class PreprocessorSpec(_Section):
    input_dtype: Literal["float32", "float64"]
    """What training passed to the preprocessor; scikit-learn computes in the type of its input."""


class GaussianSpec(_Section):
    """The network yields `mean` and `log_std` of a diagonal Gaussian, each `[rows, dims]`."""

    type: Literal["gaussian"]


class ActionSpec(_Section):
    """What the policy's action means: the name of each dimension, and the bounds that training clipped it to."""

    layout: tuple[Literal["throttle", "brake", "acceleration", "steer"], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @model_validator(mode="after")
    def _drivable(self) -> Self:
        if sorted(self.layout) not in (["acceleration", "steer"], ["brake", "steer", "throttle"]):
            raise ValueError("layout must name throttle, brake and steer, or acceleration and steer, each once")
        if not len(self.layout) == len(self.low) == len(self.high):
            raise ValueError("layout, low and high must have the same length")
        for name, low, high in zip(self.layout, self.low, self.high, strict=True):
            floor = 0.0 if name in ("throttle", "brake") else -1.0
            if not floor <= low < high <= 1.0:
                raise ValueError(f"{name} must lie within [{floor}, 1.0], got [{low}, {high}]")
        return self


class Controls(_Section):
    """CARLA's `VehicleControl`: positive steer turns right."""

    throttle: UnitInterval
    brake: UnitInterval
    steer: SignedUnit


class SafetySpec(_Section):
    fallback: Controls
    """The action that leaves when the policy yields something unusable."""


class ParitySpec(_Section):
    atol: Annotated[float, Field(ge=0.0, le=1e-3)] = 1e-6
    """Largest difference from the training side's numbers at which the version may still go live."""


class InferenceSpec(_Section):
    tile: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rows of one forward pass, always exactly as many: the reason why batch mates never change a row's bits."""
    max_observations: Annotated[int, Field(ge=1, le=65_536)] = 8192
    """Most observations in one request."""


class ModelCard(_Section):
    model_name: Literal["carla_policy"]
    version: Version
    description: str
    created: datetime
    git_sha: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    """Commit of the training code."""
    framework_versions: dict[str, str]
    observation: ObservationSpec
    preprocessor: PreprocessorSpec
    head: GaussianSpec
    action: ActionSpec
    safety: SafetySpec
    parity: ParitySpec = ParitySpec()
    inference: InferenceSpec = InferenceSpec()
    performance_metrics: dict[str, float | int | str]
    artifact_hashes: dict[str, Digest]
    card_hash: Digest

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.artifact_hashes.keys() != ARTIFACT_FILES:
            raise ValueError(f"artifact_hashes must list exactly {sorted(ARTIFACT_FILES)}")
        return self


def load_card(path: Path) -> ModelCard:
    """The card at `path`; `ArtifactError` names the file, the key, what was expected and what came."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read: {error.strerror}") from None
    document = parse_yaml(data, path.name)
    try:
        card = ModelCard.model_validate_json(json.dumps(document, default=_iso))
    except ValidationError as error:
        findings = (f"{'.'.join(map(str, f['loc'])) or 'card'}: {_finding(f)}" for f in error.errors())
        raise ArtifactError(f"{path.name}: {'; '.join(findings)}") from None
    body, _, _ = data.rpartition(f"{CARD_HASH_KEY}:".encode())
    if data != body + card_hash_line(body):
        raise ArtifactError(
            f"{path.name}: content has changed: its last line should be {card_hash_line(body).decode().strip()!r}; "
            "if the edit is meant, run `carla-policy seal` on the artifact"
        )
    return card


def _finding(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        digests = error["loc"][-1] in ("artifact_hashes", CARD_HASH_KEY)
        return "required, but missing" + ("; `carla-policy seal` writes it" if digests else "")
    if error["type"] == "extra_forbidden":
        return "not a key of a model card"
    return f"{error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.80})"


def _iso(value: object) -> str:
    """YAML's dates as JSON knows them; nothing else that JSON lacks belongs in a card."""
    return value.isoformat() if isinstance(value, date) else f"<{type(value).__name__}>"


def card_hash_line(body: bytes) -> bytes:
    """The card's last line: the digest of all the bytes before it."""
    return f"{CARD_HASH_KEY}: {sha256(body)}\n".encode()


def parse_yaml(data: bytes, name: str) -> Any:
    """The one document in `data`, plain types only: no tags, no aliases, no key twice."""
    try:
        return yaml.load(data, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"{name}: not readable as YAML: {' '.join(str(error).split())}") from None


FLOAT_OF_YAML_1_2 = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


class _StrictLoader(yaml.SafeLoader):
    """Also reads `1e-6` as the number that it is in YAML 1.2, where PyYAML's 1.1 sees a string."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a string", node.start_mark)
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_OF_YAML_1_2, list("-+0123456789"))
