"""The user's own code, named on the command line as `package.module:name` or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from carla_policy_tools.export.errors import ExportError


def import_target(target: str) -> Callable[..., Any]:
    """The function or class that `target` names."""
    module_name, _, name = target.rpartition(":")
    if not module_name:
        raise ExportError(f"{target}: expected package.module:name or file.py:name")
    found = getattr(import_module(module_name), name, None)
    if not callable(found):
        raise ExportError(f"{target}: {module_name} has no function or class {name}")
    return found  # type: ignore[no-any-return]


def import_module(name: str) -> ModuleType:
    """The module `name`, or the file `name` if it ends in .py; the current directory is searched too."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return _load_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except Exception as error:  # importing runs the user's own code
        raise ExportError(f"{name}: cannot be imported: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
