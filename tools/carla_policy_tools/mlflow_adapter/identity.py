"""Which version of a registered model is which of ours: by what it is, never by its number or its name.

A version that was logged here carries the digest of its card as a tag; of others the card among their files is read;
and what was exported from MLflow says in its card what it came from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carla_policy.card import CARD_FILE, ModelCard, load_card
from carla_policy.digests import file_digest
from carla_policy.errors import ArtifactError
from carla_policy.strict_yaml import MAX_BYTES as MAX_CARD_BYTES
from carla_policy_tools.archive import read_entry
from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError
from carla_policy_tools.mlflow_adapter.fetching import ModelFiles
from carla_policy_tools.paths import archive_name

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

VERSION_TAG = "carla_policy.version"
CARD_HASH_TAG = "carla_policy.card_hash"


def archived_card(store: Path, version: str, digest: str) -> ModelCard:
    """The card in the archive of `version`; `ArtifactError` unless it is the archive with that digest."""
    archive = store / archive_name(version)
    try:
        actual = file_digest(archive)
    except OSError as error:
        raise ArtifactError(f"{archive}: {error.strerror}") from None
    if actual != digest:
        raise ArtifactError(f"{archive}: has changed since it was registered: expected {digest}, got {actual}")
    with tempfile.TemporaryDirectory(prefix="carla-policy-card-") as scratch:
        path = Path(scratch, CARD_FILE)
        path.write_bytes(read_entry(archive, CARD_FILE))
        return load_card(path)


class Identities:
    """The versions of one registered model, newest first; their cards are read once, and only if need be."""

    def __init__(self, connection: Connection, versions: Sequence[ModelVersion]) -> None:
        self._connection = connection
        self._versions = versions
        self._read: dict[str, str | None] = {}

    def find(self, card: ModelCard) -> ModelVersion | None:
        """The newest version of the model that is the artifact of `card`, or that it was exported from."""
        for version in self._versions:
            if version.tags.get(CARD_HASH_TAG) == card.card_hash:
                return version
        if origin := card.provenance:
            for version in self._versions:
                named = (version.name, str(version.version), version.run_id or None)
                if named == (origin.model, origin.version, origin.run_id):
                    return version
        for version in self._versions:
            if CARD_HASH_TAG not in version.tags and self._card_hash(version) == card.card_hash:
                return version
        return None

    def _card_hash(self, version: ModelVersion) -> str | None:
        """Digest of the card among the files of a version, if it has one that can be read."""
        from mlflow.exceptions import MlflowException

        number = str(version.version)
        if number not in self._read:
            try:
                self._read[number] = self._fetch_card(version)
            except (MlflowError, MlflowException, ArtifactError):  # as where a run's files were deleted
                self._read[number] = None
        return self._read[number]

    def _fetch_card(self, version: ModelVersion) -> str | None:
        location = self._connection.client.get_model_version_download_uri(version.name, version.version)
        files = ModelFiles(self._connection, location)
        cards = [file for file in files.listed() if file.name == CARD_FILE and file.size <= MAX_CARD_BYTES]
        if len(cards) != 1:
            return None
        with tempfile.TemporaryDirectory(prefix="carla-policy-card-") as scratch:
            files.fetch(cards, Path(scratch), below=cards[0].directory)
            return load_card(Path(scratch, CARD_FILE)).card_hash
