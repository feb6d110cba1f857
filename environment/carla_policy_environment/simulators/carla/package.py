"""The `carla` client package, imported when it is needed and with advice when it cannot be.

CARLA's client is a C++ library: client and simulator must be of one version, and its wheels fit certain versions of
Python alone. Nothing here imports it before a simulator is asked for, so that the rest works without it.
"""

from __future__ import annotations

import importlib
import re
import sys
from typing import Any

from carla_policy_environment.simulators.base import SimulatorError

OLDEST, BELOW = (0, 9, 15), (0, 10, 0)


def client_package() -> Any:
    """The module `carla`. Raises `SimulatorError` that says what to install where it is missing or does not load."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        package: Any = importlib.import_module("carla")
    except ModuleNotFoundError as error:
        if error.name != "carla":
            raise
        raise SimulatorError(
            f"CARLA's client package is not installed in this {python}. Install the version of your simulator, for "
            f"example: pip install carla==0.9.16 (0.9.15 has wheels for Python 3.7 to 3.10, 0.9.16 for 3.10 to 3.12)"
        ) from None
    except ImportError as error:
        raise SimulatorError(
            f"CARLA's client package is installed but does not load in this {python}: {error}. It needs glibc 2.27 "
            "(0.9.15) or 2.31 (0.9.16), libstdc++ and zlib, on Debian and Ubuntu: apt-get install libstdc++6 zlib1g"
        ) from error
    if not hasattr(package, "Client"):
        raise SimulatorError(
            f"`import carla` found {getattr(package, '__path__', package)!s}, which is not CARLA's client: "
            "a folder named carla in the working directory or on PYTHONPATH hides it"
        )
    return package


def version_of(text: str) -> tuple[int, int, int] | None:
    """`(0, 9, 15)` of "0.9.15" or of a build from source ("0.9.15-12-gabcdef0-dirty"); None of anything else."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text.strip())
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def require_same_version(client: str, server: str) -> None:
    """Raise `SimulatorError` unless both are one version from 0.9.15 up to, and without, 0.10."""
    ours, theirs = version_of(client), version_of(server)
    if ours != theirs or ours is None:
        advice = ".".join(map(str, theirs)) if theirs else "the simulator's version"
        raise SimulatorError(
            f"the client package is CARLA {client}, the simulator is {server}; they must be the same: "
            f"install carla=={advice}, or set version_check to false to try all the same"
        )
    if not OLDEST <= ours < BELOW:
        raise SimulatorError(f"CARLA {client} is not supported: use 0.9.15 or 0.9.16, or set version_check to false")
