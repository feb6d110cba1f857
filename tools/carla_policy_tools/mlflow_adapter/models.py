"""Which version of which registered model is meant, and what there is instead where it does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carla_policy_tools.mlflow_adapter.connection import Connection, MlflowError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

MAX_VERSIONS = 1_000
MAX_NAMED = 10
_MISSING = "RESOURCE_DOES_NOT_EXIST"
_SPELLING = re.compile(r"(?:models:/)?([^/:@'\"\x00-\x1f]{1,200})(?:/([1-9][0-9]{0,8})|@([A-Za-z0-9_-]{1,100}))?")


@dataclass(frozen=True)
class ModelReference:
    """`NAME`, `NAME/3` or `NAME@champion`."""

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        if not (match := _SPELLING.fullmatch(text)):
            raise MlflowError(f"{text!r}: expected NAME, NAME/VERSION or NAME@ALIAS of a registered model")
        return cls(*match.groups())


def find_model(connection: Connection, name: str) -> RegisteredModel | None:
    """The registered model of that name, if there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return connection.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != _MISSING:
            raise
        return None


def get_model(connection: Connection, name: str) -> RegisteredModel:
    if model := find_model(connection, name):
        return model
    known = [one.name for one in connection.client.search_registered_models(max_results=MAX_NAMED)]
    raise MlflowError(f"MLflow at {connection.shown} has no registered model {name!r}; it has {_listed(known)}")


def versions_of(connection: Connection, name: str) -> list[ModelVersion]:
    """All versions of a model, the newest first; the newest thousand if there are more."""
    found: list[ModelVersion] = []
    token: Any = None
    while len(found) < MAX_VERSIONS:
        page: Any = connection.client.search_model_versions(f"name='{name}'", max_results=100, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return sorted(found, key=lambda version: -int(version.version))


def get_version(connection: Connection, reference: ModelReference) -> ModelVersion:
    """The version that `reference` means, the newest where it names none; `MlflowError` says what there is."""
    model = get_model(connection, reference.name)
    wanted = reference.version
    if reference.alias:
        wanted = dict(model.aliases).get(reference.alias)
        if wanted is None:
            raise MlflowError(
                f"{reference.name} has no alias {reference.alias!r}; it has {_listed(sorted(model.aliases))}"
            )
    versions = versions_of(connection, reference.name)
    for version in versions:
        if wanted is None or str(version.version) == str(wanted):
            if version.status != "READY":
                raise MlflowError(f"{reference.name} version {version.version} is {version.status}, not READY")
            return version
    missing = f"version {wanted}" if wanted else "any version"
    raise MlflowError(f"{reference.name} has not {missing}; it has {_listed(str(one.version) for one in versions)}")


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:MAX_NAMED]) + (", ..." if len(known) > MAX_NAMED else "") if known else "none"
