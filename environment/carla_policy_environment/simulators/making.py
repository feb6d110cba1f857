"""Gymnasium environments by the name that users give them: `package.module:callable`, `file.py:callable`, or an id."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium


class EnvironmentNotMade(ValueError):
    """There is no such environment, or making it failed; the message says which and why."""


def make_environment(target: str, arguments: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
    """The environment that `target` names, made with `arguments`; it renders to arrays where it can.

    `target` is `package.module:name`, `file.py:name`, where `name` makes the environment, or an id that Gymnasium
    knows, such as `CartPole-v1`, with `module:` before it if importing that module registers it. The current directory
    is searched for modules too.
    """
    wanted = dict(arguments or {})
    module_name, _, name = target.rpartition(":")
    try:
        module = _import(module_name) if module_name else None
        factory = getattr(module, name, None)
        if callable(factory):
            environment = factory(**_with_rendering(factory, getattr(factory, "metadata", {}), wanted))
        else:
            environment = _registered(name, wanted)
    except Exception as error:  # the user's own code
        raise EnvironmentNotMade(f"{target}: cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(environment, gymnasium.Env):
        raise EnvironmentNotMade(f"{target}: expected to get a gymnasium.Env, got {type(environment).__name__}")
    return environment


def _registered(name: str, wanted: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    entry_point = gymnasium.spec(name).entry_point
    factory = gymnasium.envs.registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    if factory is not None:
        wanted = _with_rendering(factory, getattr(factory, "metadata", {}), wanted)
    return gymnasium.make(name, **wanted)


def _with_rendering(factory: Callable[..., Any], metadata: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    if "render_mode" in wanted or "rgb_array" not in metadata.get("render_modes", ()):
        return wanted
    parameters = inspect.signature(factory).parameters.values()
    takes_it = any(one.name == "render_mode" or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return {**wanted, "render_mode": "rgb_array"} if takes_it else wanted


def _import(name: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
