"""Which source a setting has its value from: flag, prefixed variable, seeds' variable, deployment file, default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carla_policy_tools.settings.model import NAMES, Settings
from carla_policy_tools.settings.sources import (
    DEFAULT_DEPLOYMENT,
    DEPLOYMENT_VARIABLE,
    check_names,
    deployment_file,
    parse,
    read_deployment,
    read_variables,
)

DEFAULT = "default"


@dataclass(frozen=True)
class Resolved:
    """The settings in force, and where each was said: a flag, a variable, `<file>: <key>`, or `default`."""

    deployment: str
    file: Path
    settings: Settings
    sources: Mapping[str, str]

    def announced(self) -> dict[str, Any]:
        """What a server says of its settings, see `Endpoint`."""
        return {
            "deployment": str(self.file.absolute()),
            "settings": self.settings.model_dump(mode="json"),
            "sources": dict(self.sources),
        }


def resolve(
    deployment: str | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Settings of the deployment that is named by flag or variable, else of `local`; of `flags`, none says nothing.

    `ValueError` for what does not fit, whoever said it, and for a mistyped variable.
    """
    environment = os.environ if environment is None else environment
    check_names(environment)
    chosen = deployment or environment.get(DEPLOYMENT_VARIABLE) or DEFAULT_DEPLOYMENT
    path = deployment_file(chosen)
    values: dict[str, Any] = {}
    sources = dict.fromkeys(NAMES, DEFAULT)
    for name, value in read_deployment(path).items():
        values[name], sources[name] = value, f"{path}: {name}"
    for name, (variable, value) in read_variables(environment).items():
        values[name], sources[name] = value, variable
    for name, value in (flags or {}).items():
        if value not in (None, []):
            option = option_of(name)
            values[name], sources[name] = parse(name, value, option), option
    return Resolved(chosen, path, Settings(**values), sources)


def option_of(name: str) -> str:
    """How the command line of `serve` spells a setting."""
    return "VERSIONS" if name == "versions" else f"--{name.replace('_', '-')}"
