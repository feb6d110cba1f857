"""`model_card.yaml`: what a version says of itself, typed; unknown keys are refused.

The card declares the observation's layout, the preprocessor's input type, the action head and layout, the safety
envelope, the parity tolerance and tile, and the SHA-256 of every other file of the artifact. Its own last line is the
digest of everything before it, so that a changed card is noticed as well.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import Self

from carla_policy.digests import sha256
from carla_policy.errors import MAX_FINDINGS, ArtifactError
from carla_policy.files import read_file
from carla_policy.specs import (
    ActionSpec,
    ContinuousActionSpec,
    HeadSpec,
    InferenceSpec,
    ObservationSpec,
    OodSpec,
    ParitySpec,
    PreprocessorSpec,
    ProvenanceSpec,
    RecurrentSpec,
    SafetySpec,
    Section,
    TableActionSpec,
)
from carla_policy.strict_yaml import MAX_BYTES, parse_yaml
from carla_policy.version import check_version

CARD_FILE = "model_card.yaml"
MODEL_FILES = ("model.pt", "model.onnx", "model.pt2")
"""The network as TorchScript, ONNX or torch.export; an artifact has one of them."""
PREPROCESSOR_FILE = "preprocessor.pkl"
GOLDEN_FILE = "golden.npz"
OOD_FILE = "ood.npz"
ARTIFACT_FILES = frozenset({*MODEL_FILES, PREPROCESSOR_FILE, GOLDEN_FILE, OOD_FILE})
"""What an artifact may consist of beside its card."""

CARD_HASH_KEY = "card_hash"
DIGESTS_KEY = "artifact_hashes"
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Version = Annotated[str, AfterValidator(check_version)]


class ModelCard(Section):
    model_name: Literal["carla_policy"]
    version: Version
    description: str
    created: datetime
    git_sha: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    """Commit of the training code."""
    framework_versions: dict[str, str]
    observation: ObservationSpec
    preprocessor: PreprocessorSpec
    head: HeadSpec
    action: ActionSpec
    safety: SafetySpec
    ood: OodSpec | None = None
    recurrent: RecurrentSpec | None = None
    parity: ParitySpec = ParitySpec()
    inference: InferenceSpec = InferenceSpec()
    performance_metrics: dict[str, float | int | str]
    provenance: ProvenanceSpec | None = None
    artifact_hashes: dict[str, Digest]
    card_hash: Digest

    @model_validator(mode="after")
    def _complete(self) -> Self:
        expected = {self.model_file, PREPROCESSOR_FILE, GOLDEN_FILE} | ({OOD_FILE} if self.ood else set())
        if self.artifact_hashes.keys() != expected:
            raise ValueError(f"artifact_hashes must list exactly {sorted(expected)}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_action(self.head.type, self.action)
        named = {f"safety.{key}.observed": rate.observed for key, rate in self._rates() if rate}
        for key, name in named.items():
            if name not in self.observation.names:
                raise ValueError(f"{key}: {name!r} is no field of the observation")
        columns = self.preprocessor.columns or ()
        if any(column >= self.observation.columns for column in columns):
            raise ValueError(f"preprocessor.columns: the observation has {self.observation.columns}, got {columns}")
        if len(set(columns)) != len(columns):
            raise ValueError(f"preprocessor.columns: each column once, got {columns}")
        if self.ood and any(field.seen is None for field in self.observation.fields):
            raise ValueError("ood: every field of the observation needs its range `seen` in training")
        return self

    def _rates(self) -> tuple[tuple[str, Any], ...]:
        return ("steer_rate", self.safety.steer_rate), ("throttle_rate", self.safety.throttle_rate)

    @property
    def gate(self) -> str:
        """What "reproduces its training outputs" means for this version."""
        return f"tile {self.inference.tile}, parity.atol {self.parity.atol:g}"

    @property
    def model_file(self) -> str:
        """Name of the network's file; the kind of file says which runtime runs it."""
        listed = [name for name in MODEL_FILES if name in self.artifact_hashes]
        if len(listed) != 1:
            raise ValueError(f"artifact_hashes must list one of {', '.join(MODEL_FILES)}, got {listed or 'none'}")
        return listed[0]


def _check_action(head: str, action: ContinuousActionSpec | TableActionSpec) -> None:
    if isinstance(action, TableActionSpec) != (head in ("categorical", "epsilon_greedy")):
        wanted = "a table of controls" if head in ("categorical", "epsilon_greedy") else "layout, low and high"
        raise ValueError(f"action: a {head} head needs {wanted}")
    if isinstance(action, ContinuousActionSpec):
        bounding = {"gaussian": "clip", "squashed_gaussian": "unscale", "beta": "unscale"}.get(head, action.bounding)
        if action.bounding != bounding:
            raise ValueError(f"action.bounding: a {head} head needs {bounding}, got {action.bounding}")


def load_card(path: Path) -> ModelCard:
    """The card at `path`; `ArtifactError` names the file, the key, what was expected and what came."""
    data = read_file(path, MAX_BYTES)
    document = parse_yaml(data, path.name)
    try:
        card = ModelCard.model_validate_json(json.dumps(document, default=_iso))
    except ValidationError as error:
        errors = error.errors()
        findings = [f"{'.'.join(map(str, f['loc'])) or 'card'}: {_finding(f)}" for f in errors[:MAX_FINDINGS]]
        findings += [f"and {len(errors) - MAX_FINDINGS} more"] if len(errors) > MAX_FINDINGS else []
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
        digests = error["loc"][-1] in (DIGESTS_KEY, CARD_HASH_KEY)
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
