"""A version of a registered model becomes an artifact: taken as it is if it is one, else exported from its files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carla_policy.card import ARTIFACT_FILES, CARD_FILE, load_card
from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError
from carla_policy_tools.mlflow_adapter.fetching import ModelFiles, RemoteFile, tree_digest
from carla_policy_tools.mlflow_adapter.models import ModelReference, get_version

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PLACE = "{}"
"""In the words of an export, stands for the directory that the model's files were copied to."""
Export = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Taken:
    """A complete artifact, as it was registered."""

    directory: Path
    version: str
    card_hash: str
    model: str
    model_version: str
    unchanged: bool
    """The same artifact was there already."""


def pull(
    connection: Connection,
    reference: ModelReference,
    *,
    version: str | None,
    artifacts: Path,
    words: Sequence[str],
    export: Export,
) -> Taken | None:
    """Leave an artifact in `artifacts`, or nothing at all; `None` where `export` made it, which tells of it itself.

    `words` are those of `carla-policy export`, with `{}` for the directory of the model's files.
    """
    found = get_version(connection, reference)
    files = ModelFiles(connection, connection.client.get_model_version_download_uri(found.name, found.version))
    listed = files.listed()
    artifacts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=artifacts) as scratch:
        if not words:
            return _take(found, files, listed, Path(scratch), version, artifacts)
        if not any(PLACE in word for word in words):
            file = listed[0].path if listed else "FILE"
            raise MlflowError(f"none of the words after -- names a file of the model, as {PLACE}/{file}")
        source = Path(scratch, "model")
        source.mkdir()
        files.fetch(listed, source)
        provenance = {
            "mlflow": connection.shown,
            "model": found.name,
            "version": str(found.version),
            "run_id": found.run_id or None,
            "files": tree_digest(source, listed),
        }
        own = ["--artifacts", str(artifacts), "--provenance", json.dumps(provenance)]
        own += ["--version", version] if version else []
        export([word.replace(PLACE, str(source)) for word in words] + own)
    return None


def artifact_directory(listed: Sequence[RemoteFile]) -> str | None:
    """The directory among the files that is an artifact: the one with a card; `MlflowError` if there are several."""
    with_card = [file.directory for file in listed if file.name == CARD_FILE]
    if len(with_card) > 1:
        raise MlflowError(f"more than one {CARD_FILE}, in {', '.join(sorted(with_card))}; expected one artifact")
    return with_card[0] if with_card else None


def _take(
    found: ModelVersion,
    files: ModelFiles,
    listed: Sequence[RemoteFile],
    scratch: Path,
    version: str | None,
    artifacts: Path,
) -> Taken:
    import torch

    from carla_policy_tools.artifact import load_artifact, verify_artifact

    place = artifact_directory(listed)
    if place is None:
        names = ", ".join(file.path for file in listed[:10]) or "no file at all"
        raise MlflowError(
            f"{found.name} version {found.version} is no artifact of this project (it has {names}); say how to export "
            f"it, as in: ... -- sb3 {PLACE}/model.zip --env ENVIRONMENT"
        )
    wanted = [file for file in listed if file.directory == place and file.name in {CARD_FILE, *ARTIFACT_FILES}]
    incoming = scratch / "incoming"
    incoming.mkdir()
    files.fetch(wanted, incoming, below=place)
    card = load_card(incoming / CARD_FILE)
    if version not in (None, card.version):
        raise MlflowError(
            f"{found.name} version {found.version} is the sealed artifact {card.version}, which cannot become "
            f"{version}; leave --version out"
        )
    torch.set_num_threads(1)
    load_artifact(incoming.rename(scratch / card.version))
    target = artifacts / card.version
    unchanged = target.exists()
    if unchanged:
        if verify_artifact(target).card_hash != card.card_hash:
            raise MlflowError(f"{target} exists with other content, and a version never changes")
    else:
        (scratch / card.version).rename(target)
    return Taken(target, card.version, card.card_hash, found.name, str(found.version), unchanged)
