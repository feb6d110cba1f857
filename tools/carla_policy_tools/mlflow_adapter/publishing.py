"""Log an artifact in MLflow: a run with the card's numbers, and a version of a registered model of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carla_policy.card import ARTIFACT_FILES, CARD_FILE, ModelCard
from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError
from carla_policy_tools.mlflow_adapter.identity import CARD_HASH_TAG, VERSION_TAG
from carla_policy_tools.mlflow_adapter.models import find_model, versions_of

PLACE = "artifact"
"""Directory of the files among a run's artifacts."""
MAX_PARAM = 500


@dataclass(frozen=True)
class Logged:
    version: str
    model: str
    model_version: str
    run_id: str | None
    unchanged: bool
    """It was logged before."""


def log(connection: Connection, directory: Path, *, name: str, experiment: str) -> Logged:
    """Log the artifact in `directory`, after it has reproduced its golden vectors; once only.

    `MlflowError` where the same version was logged with other content. A run that breaks off is marked FAILED.
    """
    import torch

    from carla_policy_tools.artifact import load_artifact

    torch.set_num_threads(1)
    card = load_artifact(directory).policy.card
    exists = find_model(connection, name) is not None
    for known in versions_of(connection, name) if exists else ():
        if known.tags.get(CARD_HASH_TAG) == card.card_hash:
            return Logged(card.version, name, str(known.version), known.run_id, True)
        if known.tags.get(VERSION_TAG) == card.version:
            raise MlflowError(
                f"{card.version} was logged before with other content, as {name} version {known.version}; a version "
                "never changes: give the artifact a new one"
            )
    client = connection.client
    tags = {VERSION_TAG: card.version, CARD_HASH_TAG: card.card_hash}
    run = client.create_run(_experiment(connection, experiment), run_name=f"{name} {card.version}", tags=tags)
    run_id, state = run.info.run_id, "FAILED"
    try:
        for key, value in _params(card).items():
            client.log_param(run_id, key, value[:MAX_PARAM])
        for key, number in _numbers(card).items():
            client.log_metric(run_id, key, number)
        for file in sorted(directory.iterdir()):
            if file.name in {CARD_FILE, *ARTIFACT_FILES}:
                client.log_artifact(run_id, str(file), PLACE)
        if not exists:
            client.create_registered_model(name, description="Driving policies, see model_card.yaml of each version")
        made = client.create_model_version(
            name, f"{run.info.artifact_uri}/{PLACE}", run_id, tags=tags, description=card.description
        )
        state = "FINISHED"
    finally:
        client.set_terminated(run_id, state)
    return Logged(card.version, name, str(made.version), run_id, False)


def _experiment(connection: Connection, name: str) -> str:
    found = connection.client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    database = connection.database
    # A store without a server would put files into whatever directory this was called from.
    beside = str(database.resolve().with_name(f"{database.stem}-artifacts")) if database else None
    return str(connection.client.create_experiment(name, artifact_location=beside))


def _params(card: ModelCard) -> dict[str, str]:
    """What of the card is no number."""
    known: Mapping[str, Any] = {
        "version": card.version,
        "created": card.created.isoformat(),
        "git_sha": card.git_sha,
        "head": card.head.type,
        "network": card.model_file,
        "observation_columns": card.observation.columns,
        "tile": card.inference.tile,
        "parity_atol": card.parity.atol,
        "ood": card.ood.action if card.ood else "off",
        "recurrent": card.recurrent is not None,
        **{f"framework.{name}": version for name, version in card.framework_versions.items()},
    }
    texts = {key: value for key, value in card.performance_metrics.items() if isinstance(value, str)}
    return {key: str(value) for key, value in {**known, **texts}.items()}


def _numbers(card: ModelCard) -> dict[str, float]:
    return {key: float(value) for key, value in card.performance_metrics.items() if not isinstance(value, str)}
