"""The one place where a `Policy` is put together from the files of a version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from carla_policy.actions import ActionLayout
from carla_policy.card import GOLDEN_FILE, MODEL_FILE, PREPROCESSOR_FILE, ModelCard
from carla_policy.errors import ArtifactError
from carla_policy.golden import GoldenVectors, load_golden
from carla_policy.heads import GaussianHead
from carla_policy.integrity import verify_files
from carla_policy.policy import Policy
from carla_policy.preprocessing import Preprocessor, load_preprocessor
from carla_policy.runtime import load_torchscript
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
    preprocessor = load_preprocessor(
        model_dir, columns=card.observation.columns, input_dtype=card.preprocessor.input_dtype
    )
    return assemble(model_dir, card, preprocessor)


def assemble(directory: Path, card: ModelCard, preprocessor: Preprocessor) -> LoadedPolicy:
    """Put a policy together from verified files in `directory` and replay its golden vectors."""
    head, layout = GaussianHead(), ActionLayout.of(card.action)
    golden = load_card_golden(directory, card)
    width = preprocessor(golden.observations[:1]).shape[1]
    if width != golden.features.shape[1]:
        raise ArtifactError(
            f"{PREPROCESSOR_FILE}: gives {width} features, but {GOLDEN_FILE}: features has {golden.features.shape[1]}"
        )
    runtime = load_torchscript(
        directory / MODEL_FILE,
        tile=card.inference.tile,
        output_names=head.parameter_names,
        features=golden.features.shape[1],
        dims=layout.dims,
    )
    policy = Policy(card, preprocessor, runtime, head, layout, SafetyEnvelope.of(card.safety))
    return LoadedPolicy(policy, golden, replay(policy, golden))


def load_card_golden(directory: Path, card: ModelCard) -> GoldenVectors:
    """The golden vectors in `directory`, of the shapes that its card implies."""
    return load_golden(
        directory / GOLDEN_FILE,
        columns=card.observation.columns,
        dims=len(card.action.layout),
        parameter_names=GaussianHead.parameter_names,
    )
