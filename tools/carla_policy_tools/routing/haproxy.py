"""Where HAProxy is: on the PATH, or in `build/haproxy`, unpacked from Debian's packages without root.

`python -m carla_policy_tools.routing.haproxy` (`make proxy`) unpacks it. Which packages it takes, with the libraries
that this machine lacks, is left to apt, which only simulates an installation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from carla_policy_tools.paths import PROJECT

UNPACKED = PROJECT / "build" / "haproxy"
OLDEST = (2, 6)
_TIMEOUT_S = 300


class ProxyError(RuntimeError):
    """The proxy cannot be had, did not start, ended by itself, or refused what it was told."""


@dataclass(frozen=True)
class HAProxy:
    """How to run it: the executable, and the environment it needs to find its libraries."""

    executable: Path
    environment: dict[str, str]


def find_haproxy() -> HAProxy:
    """HAProxy 2.6 or later; `ProxyError` says how to get it."""
    on_path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    found = HAProxy(Path(on_path), dict(os.environ)) if on_path else _unpacked(UNPACKED)
    if found is None:
        raise ProxyError(
            "HAProxy is not on the PATH and not in build/haproxy: run `make proxy`, or install the package haproxy"
        )
    run = subprocess.run(
        [found.executable, "-v"], env=found.environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    version = re.search(r"version (\d+)\.(\d+)", run.stdout)
    if version is None:
        reason = (run.stderr or run.stdout).strip()
        raise ProxyError(f"{found.executable} does not run: {reason}; run `make proxy` again")
    if (int(version[1]), int(version[2])) < OLDEST:
        raise ProxyError(f"{found.executable} is HAProxy {version[1]}.{version[2]}; 2.6 or later is needed")
    return found


def install() -> HAProxy:
    """HAProxy, put into `build/haproxy` if there is none yet; `ProxyError` if apt does not know it."""
    try:
        return find_haproxy()
    except ProxyError:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise ProxyError(
                "there is no apt-get here: install HAProxy 2.6 or later with your system's package manager"
            ) from None
    UNPACKED.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED.parent, prefix="haproxy-") as scratch:
        directory = Path(scratch)
        tree = directory / "tree"
        for package in _packages(directory):
            _apt(directory, "download", package)
        for archive in sorted(directory.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), str(tree)], directory)
        shutil.rmtree(UNPACKED, ignore_errors=True)
        tree.rename(UNPACKED)
    return find_haproxy()


def _unpacked(tree: Path) -> HAProxy | None:
    executable = tree / "usr" / "sbin" / "haproxy"
    if not executable.is_file():
        return None
    libraries = [str(path) for pattern in ("usr/lib/*-linux-gnu*", "lib/*-linux-gnu*") for path in tree.glob(pattern)]
    own = os.environ.get("LD_LIBRARY_PATH")
    return HAProxy(executable, {**os.environ, "LD_LIBRARY_PATH": ":".join([*libraries, *([own] if own else [])])})


def _packages(directory: Path) -> list[str]:
    """`haproxy` and what it lacks here, each as `name=version`."""
    simulate = ["install", "--simulate", "--no-install-recommends", "haproxy"]
    try:
        plan = _apt(directory, *simulate)
    except ProxyError:
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
        raise ProxyError(f"{' '.join(command)}: {run.stderr.strip() or run.stdout.strip()}")
    return run.stdout


if __name__ == "__main__":
    try:
        print(f"HAProxy: {install().executable}")
    except ProxyError as error:
        sys.exit(f"error: {error}")
