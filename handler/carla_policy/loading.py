"""The one place where a `Policy` is put together from the files of a version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from carla_policy.actions import ActionLayout, make_layout
from carla_policy.card import CARD_FILE, GOLDEN_FILE, OOD_FILE, PREPROCESSOR_FILE, ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.golden import GoldenVectors, load_golden
from carla_policy.heads import Head, make_head
from carla_policy.integrity import verify_files
from carla_policy.ood import load_detector
from carla_policy.policy import Policy
from carla_policy.preprocessing import Preprocessor, load_preprocessor
from carla_policy.runtimes import load_runtime
from carla_policy.runtimes.tiling import NEXT_STATE, Signature
from carla_policy.safety import SafetyEnvelope
from carla_policy.selftest import StageParity, replay


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy that has reproduced its golden vectors, the vectors, and how close it came."""

    policy: Policy
    golden: GoldenVectors
    parity: tuple[StageParity, ...]


def load_policy(model_dir: Path) -> LoadedPolicy:
    """Load the version unpacked in `model_dir`: what is loaded is what was verified, or `ArtifactError`.

    The order matters: nothing is opened before the digests of all files match, and nothing acts before the golden
    vectors have been replayed, which also warms the runtime up.
    """
    card = verify_files(model_dir)
    return assemble(model_dir, card, load_preprocessor(model_dir, card))


def assemble(directory: Path, card: ModelCard, preprocessor: Preprocessor) -> LoadedPolicy:
    """Put a policy together from verified files in `directory` and replay its golden vectors."""
    head, layout = _head_and_layout(card)
    golden = load_card_golden(directory, card)
    _check_bounds(card, golden)
    width = preprocessor(golden.observations[:1]).shape[1]
    if width != golden.features.shape[1]:
        raise ArtifactError(
            f"{PREPROCESSOR_FILE}: gives {width} features, but {GOLDEN_FILE}: features has {golden.features.shape[1]}"
        )
    policy = Policy(
        card=card,
        preprocessor=preprocessor,
        runtime=load_runtime(directory / card.model_file, signature_of(card, width), card.inference.tile),
        head=head,
        layout=layout,
        safety=SafetyEnvelope.of(card.safety, card.observation.names),
        detector=load_detector(directory / OOD_FILE, card.ood, card, width) if card.ood else None,
    )
    return LoadedPolicy(policy, golden, replay(policy, golden))


def _check_bounds(card: ModelCard, golden: GoldenVectors) -> None:
    """A card whose bounds exclude real observations would have requests refused that training knows."""
    low, high = card.observation.bounds
    outside = np.argwhere(~((golden.observations >= low) & (golden.observations <= high)))
    if len(outside):
        row, column = outside[0]
        field = card.observation.fields[column]
        raise ArtifactError(
            f"{CARD_FILE}: observation.fields.{column}: {field.name} must lie within [{field.low}, {field.high}], but "
            f"golden vector {row} has {golden.observations[row, column]}; widen low and high"
        )


def signature_of(card: ModelCard, features: int) -> Signature:
    """What the network of a card takes and yields."""
    head, layout = _head_and_layout(card)
    outputs = dict.fromkeys(head.parameter_names, layout.parameter_width)
    if card.recurrent is None:
        return Signature({"features": features}, outputs)
    size = card.recurrent.state_size
    return Signature({"features": features, "state": size}, {**outputs, NEXT_STATE: size})


def load_card_golden(directory: Path, card: ModelCard) -> GoldenVectors:
    """The golden vectors in `directory`, of the shapes that its card implies."""
    head, layout = _head_and_layout(card)
    return load_golden(
        directory / GOLDEN_FILE,
        columns=card.observation.columns,
        dims=len(layout.names),
        parameter_width=layout.parameter_width,
        parameter_names=head.parameter_names,
        state_size=card.recurrent.state_size if card.recurrent else 0,
    )


def _head_and_layout(card: ModelCard) -> tuple[Head, ActionLayout]:
    head = make_head(card.head)
    return head, make_layout(card.action, head.native_range)
