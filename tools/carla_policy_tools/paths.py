"""Where the project's files are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import carla_policy
from carla_policy.errors import ArtifactError
from carla_policy.version import check_version, parse_version, version_key

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout that this installation runs from."""

CONFIG = PROJECT / "config"
CONFIG_PROPERTIES = PROJECT / "config.properties"
ARTIFACTS = PROJECT / "artifacts"
MODEL_STORE = PROJECT / "model_store"
HANDLER_SOURCES = Path(carla_policy.__file__).resolve().parents[1]

MODEL_NAME = "carla_policy"
KEY_FILE = "key_file.json"
"""Where a server that asks for keys keeps them, in its run directory."""


def archive_name(version: str) -> str:
    """File name of a version's archive in the model store."""
    return f"{MODEL_NAME}-{parse_version(version)}.mar"


def archived_versions(store: Path) -> list[str]:
    """Versions that `store` has an archive of, oldest first; files of other names are none.

    `PermissionError` where this user may not look, which is something else than an empty store.
    """
    names = map(Path, os.listdir(store) if store.is_dir() else ())  # noqa: PTH208
    return sorted_versions(
        name.stem.removeprefix(f"{MODEL_NAME}-") for name in names if name.match(f"{MODEL_NAME}-*.mar")
    )


def sorted_versions(names: Iterable[str]) -> list[str]:
    """Those of `names` that are versions, oldest first."""
    versions = []
    for name in names:
        try:
            versions.append(check_version(name))
        except ValueError:
            continue
    return sorted(versions, key=version_key)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Begin the message of an `ArtifactError` from inside with the artifact or archive that it is about."""
    try:
        yield
    except ArtifactError as error:
        text = str(error).removeprefix(f"{path.name}: ")
        raise ArtifactError(text if text.startswith(str(path)) else f"{path}: {text}") from None
