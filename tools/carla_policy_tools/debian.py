"""Programs of Debian's packages without root: downloaded by apt and unpacked below `build/`.

Which packages it takes, with the libraries that this machine lacks, is left to apt, which only simulates an
installation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 300


class PackageError(RuntimeError):
    """apt is not there, or does not know the package, or could not fetch it."""


@dataclass(frozen=True)
class Program:
    """How to run it: the executable, and the environment it needs to find its libraries."""

    executable: Path
    environment: dict[str, str]


def unpacked_program(tree: Path, path: str) -> Program | None:
    """The program at `path` in an unpacked `tree`; `None` where it is not there."""
    executable = tree / path
    if not executable.is_file():
        return None
    libraries = [str(path) for pattern in ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*") for path in tree.glob(pattern)]
    own = os.environ.get("LD_LIBRARY_PATH")
    return Program(executable, {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries, *([own] if own else [])])})


def unpack_package(package: str, tree: Path) -> None:
    """Download `package` with what this machine lacks of its dependencies, and put them into `tree` in one step."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PackageError("there is no apt-get here")
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=f"{package}-") as scratch:
        directory = Path(scratch)
        fresh = directory / "tree"
        for wanted in _packages(directory, package):
            _apt(directory, "download", wanted)
        for archive in sorted(directory.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(fresh)], directory)
        shutil.rmtree(tree, ignore_errors=True)
        fresh.rename(tree)


def _packages(directory: Path, package: str) -> list[str]:
    """`package` and what it lacks here, each as `name=version`."""
    simulate = ["install", "--simulate", "--no-install-recommends", package]
    try:
        plan = _apt(directory, *simulate)
    except PackageError:
        # No package lists, as in most container images: fetch them, but not into the system's place.
        (directory / "lists").mkdir()
        _apt(directory, "update")
        plan = _apt(directory, *simulate)
    return [f"{name}={version}" for name, version in re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", plan, re.M)]


def _apt(directory: Path, *arguments: str) -> str:
    lists = directory / "lists"
    own = [f"Dir::State::Lists={lists}", f"Dir::Cache={directory / 'cache'}"] if lists.exists() else []
    options = [part for option in ("APT::Sandbox::User=", *own) for part in ("-o", option)]
    return _run(["apt-get", "-qq", *options, *arguments], directory)


def _run(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    run = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if run.returncode:
        raise PackageError(f"{' '.join(command)}: {run.stderr.strip() or run.stdout.strip()}")
    return run.stdout
