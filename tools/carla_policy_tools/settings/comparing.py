"""What a running server was started with against what its deployment's file says now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.settings.model import ABOUT, LIVE, NAMES, Settings
from carla_policy_tools.settings.resolving import DEFAULT
from carla_policy_tools.settings.sources import parse, read_deployment

APPLIED = "config apply"


@dataclass(frozen=True)
class Difference:
    """A setting whose file has changed since the server was started."""

    name: str
    running: Any
    wanted: Any
    source: str
    """Of what is wanted."""

    @property
    def advice(self) -> str:
        reason = ABOUT[self.name].restart
        return "`carla-policy config apply`" if reason is None else f"needs a restart: {reason}"

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "live": self.name in LIVE, "advice": self.advice}


def differences(server: Endpoint) -> list[Difference]:
    """What the deployment's file says that `server` does not do. Flags and variables of its own start stay in force."""
    path = Path(server.deployment)
    stated = _as_json(read_deployment(path)) if path.is_file() else {}
    defaults = _as_json({name: getattr(Settings(), name) for name in NAMES})
    found = []
    for name, running in server.settings.items():
        if name not in NAMES or is_fixed(server, name):
            continue
        wanted, source = (stated[name], f"{path}: {name}") if name in stated else (defaults[name], DEFAULT)
        if running != wanted:
            found.append(Difference(name, running, wanted, source))
    return found


def is_fixed(server: Endpoint, name: str) -> bool:
    """Whether a flag, a variable or an earlier `config apply` says a setting of `server`, which no file changes."""
    source = server.sources.get(name, DEFAULT)
    return source != DEFAULT and not source.startswith(f"{server.deployment}: ")


def to_apply(server: Endpoint, assignments: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and sources for `server`: what its file says now of settings that change without a restart, and what each
    assignment `name=value` does; `name=` undoes an earlier one. `ValueError` for a setting that needs a restart.
    """
    given = dict(_assignment(text) for text in assignments)
    dropped = [name for name, value in given.items() if value is None]
    sources = {**server.sources, **dict.fromkeys(dropped, DEFAULT)}
    settings = {**server.settings}
    for name in dropped:
        settings[name] = object()  # differs from whatever the file says
    released = server.model_copy(update={"sources": sources, "settings": settings})
    asked = {item.name: item for item in differences(released)}
    values = {name: item.wanted for name, item in asked.items() if name in LIVE}
    told = {name: asked[name].source for name in values}
    for name, value in given.items():
        if value is not None:
            values[name], told[name] = value, APPLIED
    return values, told


def _assignment(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or name not in NAMES:
        raise ValueError(f"{text}: expected NAME=VALUE of a setting that changes without a restart: {', '.join(LIVE)}")
    if name not in LIVE:
        raise ValueError(f"{name}: needs a restart: {ABOUT[name].restart}; without one, {', '.join(LIVE)} can change")
    return name, parse(name, value, f"config apply {name}", from_text=True) if value else None


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Settings(**{name: value}).model_dump(mode="json")[name] for name, value in values.items()}
