"""The artifact directory that a training run leaves: verified as a whole, and sealed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from carla_policy.card import (
    ARTIFACT_FILES,
    CARD_FILE,
    CARD_HASH_KEY,
    FLOAT_OF_YAML_1_2,
    PREPROCESSOR_FILE,
    ModelCard,
    card_hash_line,
    load_card,
    parse_yaml,
)
from carla_policy.digests import compare_digests, directory_digests, file_digest
from carla_policy.errors import ArtifactError
from carla_policy.loading import LoadedPolicy, assemble
from carla_policy.preprocessing import SklearnPreprocessor
from carla_policy.safe_pickle import load_preprocessor_pickle


def verify_artifact(directory: Path) -> ModelCard:
    """The card of `directory`, after its files, digests and name have been checked against it."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such artifact directory")
    card = load_card(directory / CARD_FILE)
    actual = {name: digest for name, digest in directory_digests(directory).items() if name != CARD_FILE}
    compare_digests(card.artifact_hashes, actual, listed_in=CARD_FILE)
    if directory.resolve().name != card.version:
        raise ArtifactError(
            f"{CARD_FILE}: version {card.version} stands in a directory named {directory.resolve().name!r}; "
            "they must be the same"
        )
    return card


def load_artifact(directory: Path) -> LoadedPolicy:
    """The policy in an artifact directory, not yet packed; its preprocessor is scikit-learn's own."""
    card = verify_artifact(directory)
    return assemble(directory, card, load_training_preprocessor(directory, card))


def load_training_preprocessor(directory: Path, card: ModelCard) -> SklearnPreprocessor:
    """The preprocessor exactly as training left it, opened through the allow-list."""
    transformer = load_preprocessor_pickle(directory / PREPROCESSOR_FILE)
    training = SklearnPreprocessor(transformer, np.dtype(card.preprocessor.input_dtype))
    try:
        training(np.zeros((1, card.observation.columns), np.float32))
    except Exception as error:  # whatever an unfitted or foreign transformer runs into
        raise ArtifactError(
            f"{PREPROCESSOR_FILE}: cannot transform the {card.observation.columns} columns of {CARD_FILE}: {error}"
        ) from None
    return training


def write_card(directory: Path, content: dict[str, Any]) -> ModelCard:
    """Write `model_card.yaml` with the digests of the files in `directory`, unless it could not be read back."""
    content = {key: value for key, value in content.items() if key not in ("artifact_hashes", CARD_HASH_KEY)}
    missing = sorted(name for name in ARTIFACT_FILES if not (directory / name).is_file())
    if missing:
        raise ArtifactError(f"{directory}: {', '.join(missing)} missing: an artifact is {sorted(ARTIFACT_FILES)}")
    strangers = sorted(path.name for path in directory.iterdir() if path.name not in ARTIFACT_FILES | {CARD_FILE})
    if strangers:
        raise ArtifactError(f"{directory}: {', '.join(strangers)}: no part of an artifact; remove it")
    content["artifact_hashes"] = {name: file_digest(directory / name) for name in sorted(ARTIFACT_FILES)}
    body = yaml.dump(content, Dumper=_CardDumper, sort_keys=False, width=110, allow_unicode=True).encode()
    with tempfile.TemporaryDirectory(dir=directory, prefix=".card-") as scratch:
        candidate = Path(scratch, CARD_FILE)
        candidate.write_bytes(body + card_hash_line(body))
        card = load_card(candidate)
        candidate.replace(directory / CARD_FILE)
    return card


def seal(directory: Path) -> ModelCard:
    """Recompute the digests in an existing card, after an edit that was meant."""
    content = parse_yaml((directory / CARD_FILE).read_bytes(), CARD_FILE)
    if not isinstance(content, dict):
        raise ArtifactError(f"{CARD_FILE}: expected keys and values, got {type(content).__name__}")
    return write_card(directory, content)


class _CardDumper(yaml.SafeDumper):
    """Lists of numbers and observed fields take a line each, so that a card of many sensors stays readable."""

    def ignore_aliases(self, _: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        leaf = isinstance(mapping, dict) and "name" in mapping and "unit" in mapping
        return super().represent_mapping(tag, mapping, flow_style=True if leaf else flow_style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        leaf = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=True if leaf else flow_style)


# What people put into a card: torch.__version__ and numpy.float64 are subclasses of plain types.
_CardDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))
_CardDumper.add_multi_representer(float, lambda dumper, number: dumper.represent_float(float(number)))
# A text that the loader would take for a number must be quoted.
_CardDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_OF_YAML_1_2, list("-+0123456789"))
