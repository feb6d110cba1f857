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
    DIGESTS_KEY,
    GOLDEN_FILE,
    MODEL_FILES,
    OOD_FILE,
    PREPROCESSOR_FILE,
    ModelCard,
    card_hash_line,
    load_card,
)
from carla_policy.digests import compare_digests, directory_digests
from carla_policy.errors import ArtifactError
from carla_policy.files import read_file
from carla_policy.loading import LoadedPolicy, assemble
from carla_policy.preprocessing import SklearnPreprocessor
from carla_policy.safe_pickle import load_preprocessor_pickle
from carla_policy.strict_yaml import FLOAT_OF_YAML_1_2, MAX_BYTES, parse_yaml


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
    """The policy in an artifact directory, not yet packed; its preprocessor is the one that training left."""
    card = verify_artifact(directory)
    return assemble(directory, card, load_training_preprocessor(directory, card))


def load_training_preprocessor(directory: Path, card: ModelCard) -> SklearnPreprocessor:
    """The preprocessor exactly as training left it, opened through the allow-list."""
    transformer = load_preprocessor_pickle(directory / PREPROCESSOR_FILE)
    spec = card.preprocessor
    training = SklearnPreprocessor(transformer, np.dtype(spec.input_dtype), spec.columns)
    try:
        training(np.zeros((1, card.observation.columns), np.float32))
    except Exception as error:  # whatever an unfitted or foreign transformer runs into
        raise ArtifactError(
            f"{PREPROCESSOR_FILE}: cannot transform the {card.observation.columns} columns of {CARD_FILE}: {error}"
        ) from None
    return training


def write_card(directory: Path, content: dict[str, Any]) -> ModelCard:
    """Write `model_card.yaml` of `content` with the digests of the files in `directory`; see `seal_text`."""
    content = {key: value for key, value in content.items() if key not in (DIGESTS_KEY, CARD_HASH_KEY)}
    return seal_text(directory, card_text(content))


def card_text(content: dict[str, Any]) -> str:
    """`content` as a card spells it."""
    return yaml.dump(content, Dumper=_CardDumper, sort_keys=False, width=110, allow_unicode=True)


def seal(directory: Path) -> ModelCard:
    """Recompute the digests in an existing card, after an edit that was meant; comments and layout stay."""
    try:
        text = read_file(directory / CARD_FILE, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{CARD_FILE}: not UTF-8: {error.reason} at byte {error.start}") from None
    content = parse_yaml(text.encode(), CARD_FILE)
    if not isinstance(content, dict):
        raise ArtifactError(f"{CARD_FILE}: expected keys and values, got {type(content).__name__}")
    return seal_text(directory, _without_digests(text))


def seal_text(directory: Path, text: str) -> ModelCard:
    """Write a card of `text` and the digests of the files in `directory`, unless it could not be read back."""
    present = {path.name for path in directory.iterdir()} - {CARD_FILE}
    required = {PREPROCESSOR_FILE, GOLDEN_FILE, *(present & set(MODEL_FILES) or {MODEL_FILES[0]})}
    if missing := sorted(required - present):
        raise ArtifactError(
            f"{directory}: {', '.join(missing)} missing: an artifact is one of {', '.join(MODEL_FILES)}, "
            f"{PREPROCESSOR_FILE}, {GOLDEN_FILE}, and {OOD_FILE} where the card has a section ood"
        )
    if strangers := sorted(present - ARTIFACT_FILES):
        raise ArtifactError(f"{directory}: {', '.join(strangers)}: no part of an artifact; remove it")
    digests = {name: digest for name, digest in directory_digests(directory).items() if name != CARD_FILE}
    body = (text.rstrip("\n") + "\n" + card_text({DIGESTS_KEY: digests})).encode()
    with tempfile.TemporaryDirectory(dir=directory, prefix=".card-") as scratch:
        candidate = Path(scratch, CARD_FILE)
        candidate.write_bytes(body + card_hash_line(body))
        card = load_card(candidate)
        candidate.replace(directory / CARD_FILE)
    return card


def _without_digests(text: str) -> str:
    """The card's own text: every top-level block but the digests, which stand at its end."""
    kept, skipping = [], False
    for line in text.splitlines():
        if line[:1] not in ("", " ", "\t", "#", "-"):
            skipping = line.partition(":")[0].strip("'\" ") in (DIGESTS_KEY, CARD_HASH_KEY)
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


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
