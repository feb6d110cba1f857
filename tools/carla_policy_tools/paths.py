"""Where the project's files are."""

from __future__ import annotations

from pathlib import Path

import carla_policy
from carla_policy.version import parse_version

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout that this installation runs from."""

CONFIG = PROJECT / "config"
CONFIG_PROPERTIES = PROJECT / "config.properties"
ARTIFACTS = PROJECT / "artifacts"
MODEL_STORE = PROJECT / "model_store"
HANDLER_SOURCES = Path(carla_policy.__file__).resolve().parents[1]

MODEL_NAME = "carla_policy"


def archive_name(version: str) -> str:
    """File name of a version's archive in the model store."""
    return f"{MODEL_NAME}-{parse_version(version)}.mar"
